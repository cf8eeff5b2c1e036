/*
 * The same job in C, the yardstick: page tables to counters, on an ELF vmcore.
 *
 *     reference VMCORE PLAN
 *
 * PLAN (plan.py) says where each process's page tables begin and which address ranges are
 * mergeable: to find them is work for drgn, there and in ksm-eval, and is not on either clock.
 * Reads are as large as ksm-eval's, and neighbouring page tables are read together too.
 */
#include "vmcore.h"

#include <stdlib.h>
#include <string.h>

#define PRESENT (1UL << 0)
#define HUGE (1UL << 7)
#define PROTNONE (1UL << 8)
#define SPECIAL (1UL << 9)
#define ADDRESS 0x000ffffffffff000UL

#define MAPPING_ANON 1UL
#define STRUCTS (1UL << 15) /* struct pages in memory at once: what a PMD of vmemmap maps */
#define PMD_SIZE (1UL << 21)

/* The beginning of PLAN, in this order; then for each process the physical address of its pgd,
 * the number of ranges, and these. */
struct plan {
	uint64_t levels, kernel_pgd, vmemmap, page_struct, head, mapping, flags;
	uint64_t zone_shift, zone_mask, zone_device, zero_pfn, huge_zero_pfn, max_pfn;
	uint64_t skip_prot_none, seed, processes;
};

struct range {
	uint64_t start, end;
};

struct table {
	uint64_t address, base; /* physical; the virtual address of its first entry */
};

struct list {
	struct table *tables;
	size_t count, space;
};

static struct vmcore core;
static const struct plan *plan;

static uint32_t *mapped_pfn; /* of every mapping */
static size_t nr_mappings, space_mappings;

/* ---- page tables ---- */

static uint64_t pfn_of(uint64_t entry)
{
	return ((entry & PRESENT ? entry : ~entry) & ADDRESS) / PAGE; /* PROT_NONE is inverted */
}

static void add_table(struct list *list, uint64_t address, uint64_t base)
{
	if (list->count == list->space) {
		list->space = list->space ? 2 * list->space : 1024;
		list->tables = realloc(list->tables, list->space * sizeof(struct table));
		if (!list->tables)
			die("no memory");
	}
	list->tables[list->count++] = (struct table){ address, base };
}

static void add_mappings(uint64_t pfn, uint64_t pages, uint64_t entry)
{
	if (!(entry & PRESENT) && plan->skip_prot_none)
		return;
	if (nr_mappings + pages > space_mappings) {
		space_mappings = space_mappings ? 2 * space_mappings : 1 << 20;
		mapped_pfn = realloc(mapped_pfn, space_mappings * sizeof(*mapped_pfn));
		if (!mapped_pfn)
			die("no memory");
	}
	for (uint64_t i = 0; i < pages; i++)
		mapped_pfn[nr_mappings++] = pfn + i;
}

/* Entries [first, last) of a table; the last level, so these are pages. */
static void add_pages(const uint64_t *entries, size_t first, size_t last)
{
	for (size_t i = first; i < last; i++) {
		uint64_t entry = entries[i];

		if ((entry & (PRESENT | PROTNONE)) && !(entry & SPECIAL) && pfn_of(entry) != plan->zero_pfn)
			add_mappings(pfn_of(entry), 1, entry);
	}
}

/* The part of a huge entry that is in the range. */
static void add_huge(uint64_t entry, uint64_t va, uint64_t span, const struct range *range)
{
	uint64_t pfn = pfn_of(entry) & ~(span / PAGE - 1);
	uint64_t start = va < range->start ? range->start : va;
	uint64_t end = va + span > range->end ? range->end : va + span;

	if ((entry & SPECIAL) || pfn - plan->huge_zero_pfn < PMD_SIZE / PAGE)
		return;
	add_mappings(pfn + (start - va) / PAGE, (end - start) / PAGE, entry);
}

/* The first of ascending ranges that ends behind an address. */
static const struct range *ends_behind(const struct range *low, const struct range *high, uint64_t address)
{
	while (low < high) {
		const struct range *middle = low + (high - low) / 2;

		if (middle->end <= address)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void decode(const uint64_t *entries, const struct table *table, int level, const struct range *ranges,
		   size_t nr_ranges, struct list *below)
{
	uint64_t span = PAGE << 9 * level, end = table->base + 512 * span, done = table->base;
	const struct range *range = ends_behind(ranges, ranges + nr_ranges, table->base);

	for (; range < ranges + nr_ranges && range->start < end; range++) {
		uint64_t from = range->start > table->base ? range->start : table->base;
		size_t first = (from - table->base) / span;
		size_t last = ((range->end < end ? range->end : end) - table->base + span - 1) / span;

		if (level == 0) {
			add_pages(entries, first, last);
			continue;
		}
		for (size_t i = first; i < last; i++) {
			uint64_t entry = entries[i], va = table->base + i * span;

			if ((entry & (PRESENT | HUGE)) == PRESENT) {
				if (va >= done) /* two ranges may be in one table */
					add_table(below, entry & ADDRESS, va);
				done = va + span;
			} else if (level < 3 && (entry & (PRESENT | PROTNONE | HUGE))) {
				add_huge(entry, va, span, range);
			}
		}
	}
}

static int by_address(const void *a, const void *b)
{
	uint64_t x = ((const struct table *)a)->address, y = ((const struct table *)b)->address;

	return x < y ? -1 : x > y;
}

static void walk(uint64_t pgd, const struct range *ranges, size_t nr_ranges)
{
	static uint64_t *buffer;
	struct list now_at = { 0 }, below = { 0 }, swap;

	if (!buffer)
		buffer = aligned_alloc(PAGE, MAX_RUN * PAGE);
	add_table(&now_at, pgd, 0);
	for (int level = plan->levels - 1; level >= 0; level--) {
		qsort(now_at.tables, now_at.count, sizeof(struct table), by_address);
		for (size_t first = 0, last; first < now_at.count; first = last) {
			const struct table *table = now_at.tables + first;

			for (last = first + 1; last < now_at.count && last - first < MAX_RUN; last++)
				if (now_at.tables[last].address != now_at.tables[last - 1].address + PAGE)
					break;
			read_physical(&core, buffer, table->address, (last - first) * PAGE);
			for (size_t i = 0; i < last - first; i++)
				decode(buffer + 512 * i, table + i, level, ranges, nr_ranges, &below);
		}
		swap = now_at;
		now_at = below;
		below = swap;
		below.count = 0;
	}
	free(now_at.tables);
	free(below.tables);
}

/* ---- struct page ---- */

static uint64_t translate(uint64_t address)
{
	uint64_t table = plan->kernel_pgd, entry;

	for (int level = plan->levels - 1;; level--) {
		uint64_t span = PAGE << 9 * level;

		read_physical(&core, &entry, table + address / span % 512 * 8, 8);
		if (!(entry & PRESENT))
			die("vmemmap is not mapped at %#llx", (unsigned long long)address);
		if (level == 0 || (entry & HUGE))
			return (entry & ADDRESS & ~(span - 1)) + address % span;
		table = entry & ADDRESS;
	}
}

struct block {
	uint64_t number; /* PFNs from number * STRUCTS on, + 1: 0 is none */
	char *structs;
};

/* Blocks are those of the ascending frames, and one more for heads that are in another. */
static const char *page_struct(struct block *block, uint64_t pfn)
{
	uint64_t size = STRUCTS * plan->page_struct, start = plan->vmemmap + pfn / STRUCTS * size;

	if (block->number != pfn / STRUCTS + 1) {
		block->number = pfn / STRUCTS + 1;
		if (!block->structs)
			block->structs = allocate(size);
		for (uint64_t at = start, next; at < start + size; at = next) {
			next = (at & ~(PMD_SIZE - 1)) + PMD_SIZE;
			if (next > start + size)
				next = start + size;
			read_physical(&core, block->structs + (at - start), translate(at), next - at);
		}
	}
	return block->structs + pfn % STRUCTS * plan->page_struct;
}

static uint64_t word(const char *page, uint64_t offset)
{
	uint64_t value;

	memcpy(&value, page + offset, 8);
	return value;
}

static int anonymous(uint64_t pfn)
{
	static struct block block, block_of_heads;
	const char *page, *head;
	uint64_t compound;

	if (pfn >= plan->max_pfn)
		return 0;
	head = page = page_struct(&block, pfn);
	if ((word(page, plan->flags) >> plan->zone_shift & plan->zone_mask) == plan->zone_device)
		return 0;
	compound = word(page, plan->head);
	if (compound & 1) {
		uint64_t of = (compound - 1 - plan->vmemmap) / plan->page_struct;

		head = page_struct(of / STRUCTS == pfn / STRUCTS ? &block : &block_of_heads, of);
	}
	return word(head, plan->mapping) & MAPPING_ANON;
}

/* ---- the job ---- */

int main(int argc, char **argv)
{
	struct results results = { 0 };
	uint64_t *numbers, *pfn, *hash, top = 0;
	uint32_t *mapped, *mapped_of_pfn;
	size_t count, frames = 0;

	if (argc != 3)
		die("usage: reference VMCORE PLAN");
	open_vmcore(&core, argv[1]);
	numbers = read_numbers(argv[2], &count);
	plan = (const struct plan *)numbers;
	set_seed(plan->seed);
	start_clock();

	numbers += sizeof(*plan) / 8;
	for (uint64_t i = 0; i < plan->processes; i++) {
		walk(numbers[0], (const struct range *)(numbers + 2), numbers[1]);
		numbers += 2 + 2 * numbers[1];
	}
	stage("walk");

	for (size_t i = 0; i < nr_mappings; i++)
		if (mapped_pfn[i] > top)
			top = mapped_pfn[i];
	mapped_of_pfn = allocate((top + 1) * sizeof(*mapped_of_pfn));
	for (size_t i = 0; i < nr_mappings; i++)
		if (!mapped_of_pfn[mapped_pfn[i]]++)
			frames++;
	pfn = allocate(frames * sizeof(*pfn));
	mapped = allocate(frames * sizeof(*mapped));
	hash = allocate(frames * sizeof(*hash));
	frames = 0;
	for (uint64_t i = 0; i <= top; i++)
		if (mapped_of_pfn[i])
			pfn[frames++] = i;
	stage("distinct frames");

	count = 0;
	for (size_t i = 0; i < frames; i++)
		if (anonymous(pfn[i])) {
			mapped[count] = mapped_of_pfn[pfn[i]];
			pfn[count++] = pfn[i];
		}
	stage("struct page");

	sweep(&core, pfn, count, hash);
	stage("read and hash");

	group(pfn, hash, mapped, count, &results);
	stage("group and count");
	print_json(&results, count);
	return 0;
}
