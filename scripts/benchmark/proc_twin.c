/*
 * What ksm-eval does through /proc, in C with the same calls: proc_twin PLAN
 *
 * PAGEMAP_SCAN lists what is populated, pagemap has the PFNs, kpageflags tells anonymous pages and
 * kpagecount how often those are mapped that are not exclusive. Every frame is read once, in the
 * order of its addresses and after a look whether it is still there.
 */
#include "common.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define PM_PFN ((1UL << 55) - 1)
#define PM_EXCLUSIVE (1UL << 56)
#define PM_FILE (1UL << 61)
#define PM_PRESENT (1UL << 63)
#define KPF_ANON (1UL << 12)
#define KPF_ZERO_PAGE (1UL << 24)
#define HOLE 64 /* as in proc_pages.py */
#define CHUNK (1UL << 17) /* entries a read, as there */
#define REGIONS 8192

/* include/uapi/linux/fs.h, 6.7+ */
struct scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

struct region {
	uint64_t start, end, categories;
};

#define PAGEMAP_SCAN_IOCTL _IOWR('f', 16, struct scan)
#define IS_PRESENT (1 << 3)
#define IS_SWAPPED (1 << 4)
#define IS_HUGE (1 << 6)

struct place {
	uint64_t pfn, page, exclusive; /* page: number of the virtual one */
};

static int pagemap, mem, kpageflags, kpagecount;
static struct place *places;
static size_t nr_places, space;

static void add_entries(uint64_t first, uint64_t last)
{
	static uint64_t *entries;

	if (!entries)
		entries = allocate(CHUNK * 8);
	for (uint64_t at = first, end; at < last; at = end) {
		end = last - at < CHUNK ? last : at + CHUNK;
		must_read(pagemap, entries, (end - at) * 8, at * 8);
		if (nr_places + CHUNK > space) {
			space = 2 * space + CHUNK;
			places = realloc(places, space * sizeof(*places));
			if (!places)
				die("no memory");
		}
		for (uint64_t i = 0; i < end - at; i++)
			if ((entries[i] & (PM_PRESENT | PM_FILE)) == PM_PRESENT)
				places[nr_places++] =
					(struct place){ entries[i] & PM_PFN, at + i, entries[i] & PM_EXCLUSIVE };
	}
}

/* Populated regions with small holes filled. */
static void walk(uint64_t start, uint64_t end)
{
	static struct region regions[REGIONS];
	uint64_t first = 0, last = 0;

	while (start < end) {
		struct scan scan = { .size = sizeof(scan), .start = start, .end = end, .vec = (uint64_t)regions,
				     .vec_len = REGIONS, .category_anyof_mask = IS_PRESENT | IS_SWAPPED,
				     .return_mask = IS_HUGE | IS_PRESENT };
		int count = ioctl(pagemap, PAGEMAP_SCAN_IOCTL, &scan);

		if (count < 0)
			die("PAGEMAP_SCAN");
		for (int i = 0; i < count; i++) {
			if (last && regions[i].start / PAGE - last > HOLE) {
				add_entries(first, last);
				first = last = 0;
			}
			first = last ? first : regions[i].start / PAGE;
			last = regions[i].end / PAGE;
		}
		start = scan.walk_end;
	}
	add_entries(first, last);
}

/* The entry of each place in kpageflags or kpagecount; places ascend by PFN. */
static void look_up(int fd, const struct place *sorted, size_t count, uint64_t *out)
{
	uint64_t *entries = allocate(CHUNK * 8);

	for (size_t first = 0, end; first < count; first = end) {
		uint64_t low = sorted[first].pfn;

		for (end = first + 1; end < count && sorted[end].pfn - sorted[end - 1].pfn <= HOLE / 8 &&
				      sorted[end].pfn - low < CHUNK;)
			end++;
		must_read(fd, entries, (sorted[end - 1].pfn - low + 1) * 8, low * 8);
		for (size_t i = first; i < end; i++)
			out[i] = entries[sorted[i].pfn - low];
	}
	free(entries);
}

static int by_pfn(const void *a, const void *b)
{
	uint64_t x = ((const struct place *)a)->pfn, y = ((const struct place *)b)->pfn;

	return x < y ? -1 : x > y;
}

static int by_page(const void *a, const void *b)
{
	uint64_t x = ((const struct place *)a)->page, y = ((const struct place *)b)->page;

	return x < y ? -1 : x > y;
}

static void sweep(const struct place *frames, size_t count, uint64_t *hash)
{
	uint64_t *entries = allocate(256 * 8);
	char *buffer = aligned_alloc(PAGE, 256 * PAGE);
	double reading = 0, hashing = 0;

	for (size_t first = 0, end; first < count; first = end) {
		double start = now(), middle;

		for (end = first + 1; end < count && frames[end].page == frames[end - 1].page + 1 && end - first < 256;)
			end++;
		must_read(pagemap, entries, (end - first) * 8, frames[first].page * 8);
		for (size_t i = first; i < end; i++)
			if ((entries[i - first] & (PM_PRESENT | PM_PFN)) != (frames[i].pfn | PM_PRESENT))
				die("page %#llx went away", (unsigned long long)frames[i].page);
		must_read(mem, buffer, (end - first) * PAGE, frames[first].page * PAGE);
		middle = now();
		for (size_t i = first; i < end; i++)
			hash[i] = hash_page(buffer + (i - first) * PAGE);
		reading += middle - start;
		hashing += now() - middle;
	}
	part("read", reading);
	part("hash", hashing);
}

static int open_file(const char *format, long pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), format, pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		die("%s", path);
	return fd;
}

int main(int argc, char **argv)
{
	struct results results = { 0 };
	size_t count, frames = 0, several = 0, kept = 0;
	uint64_t *plan, *flags, *counts, *hash, *pfn;
	struct place *shared;
	uint32_t *mapped;

	if (argc != 2)
		die("usage: proc_twin PLAN");
	plan = read_numbers(argv[1], &count);
	set_seed(plan[1]);
	start_clock();
	pagemap = open_file("/proc/%ld/pagemap", plan[0]);
	mem = open_file("/proc/%ld/mem", plan[0]);
	kpageflags = open_file("/proc/kpageflags", 0);
	kpagecount = open_file("/proc/kpagecount", 0);
	for (uint64_t i = 0; i < plan[2]; i++)
		walk(plan[3 + 2 * i], plan[4 + 2 * i]);
	stage("walk");

	qsort(places, nr_places, sizeof(*places), by_pfn);
	mapped = allocate(nr_places * sizeof(*mapped));
	for (size_t i = 0; i < nr_places; i++) {
		if (!frames || places[i].pfn != places[frames - 1].pfn)
			places[frames++] = places[i];
		mapped[frames - 1]++;
	}
	stage("distinct frames");

	flags = allocate(frames * 8);
	look_up(kpageflags, places, frames, flags);
	shared = allocate(frames * sizeof(*shared));
	for (size_t i = 0; i < frames; i++) {
		if ((flags[i] & (KPF_ANON | KPF_ZERO_PAGE)) != KPF_ANON)
			continue;
		if (!places[i].exclusive)
			shared[several++] = places[i];
		places[kept] = places[i];
		mapped[kept++] = mapped[i];
	}
	counts = allocate(several * 8);
	look_up(kpagecount, shared, several, counts);
	stage("struct page");

	/* Hashes do not need the mappings of their frame: these are put back in order of PFN. */
	qsort(places, kept, sizeof(*places), by_page);
	hash = allocate(kept * 8);
	sweep(places, kept, hash);
	stage("read and hash");

	for (size_t i = 0; i < kept; i++)
		places[i].exclusive = hash[i];
	qsort(places, kept, sizeof(*places), by_pfn);
	pfn = allocate(kept * 8);
	for (size_t i = 0; i < kept; i++) {
		pfn[i] = places[i].pfn;
		hash[i] = places[i].exclusive;
	}
	group(pfn, hash, mapped, kept, &results);
	stage("group and count");
	print_json(&results, kept);
	return 0;
}
