/*
 * One thing done to the given frames of an ELF vmcore, in runs as ksm-eval reads them.
 *
 *     frames hash VMCORE FRAMES SEED    read and hash
 *     frames read VMCORE FRAMES         read into one buffer, nothing else
 *     frames copy VMCORE FRAMES         copy from mapped memory into one buffer
 *
 * FRAMES: ascending PFNs, 8 bytes each.
 */
#include "vmcore.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

static struct vmcore core;

static void read_only(const uint64_t *pfn, size_t count)
{
	char *buffer = aligned_alloc(PAGE, MAX_RUN * PAGE);

	start_clock();
	for (size_t first = 0, end; first < count; first = end) {
		end = end_of_run(pfn, first, count);
		read_physical(&core, buffer, pfn[first] * PAGE, (pfn[end - 1] - pfn[first] + 1) * PAGE);
	}
	stage("read");
}

/* Page faults are not on the clock. */
static void copy_only(const uint64_t *pfn, size_t count)
{
	char *buffer = aligned_alloc(PAGE, MAX_RUN * PAGE), *file;
	struct stat about;

	fstat(core.fd, &about);
	file = mmap(NULL, about.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, core.fd, 0);
	if (file == MAP_FAILED)
		die("mmap");
	memset(buffer, 1, MAX_RUN * PAGE);
	start_clock();
	for (size_t first = 0, end; first < count; first = end) {
		size_t size;

		end = end_of_run(pfn, first, count);
		size = (pfn[end - 1] - pfn[first] + 1) * PAGE;
		memcpy(buffer, file + file_offset(&core, pfn[first] * PAGE, size), size);
		__asm__ volatile("" : : "r"(buffer) : "memory"); /* done, though nobody looks */
	}
	stage("copy");
}

int main(int argc, char **argv)
{
	struct results results = { 0 };
	size_t count;
	uint64_t *pfn, *hash;

	if (argc < 4)
		die("usage: frames hash|read|copy VMCORE FRAMES [SEED]");
	open_vmcore(&core, argv[2]);
	pfn = read_numbers(argv[3], &count);
	if (!strcmp(argv[1], "read")) {
		read_only(pfn, count);
		print_json(NULL, count);
		return 0;
	}
	if (!strcmp(argv[1], "copy")) {
		copy_only(pfn, count);
		print_json(NULL, count);
		return 0;
	}
	set_seed(argc > 4 ? strtoull(argv[4], NULL, 0) : 0);
	hash = allocate(count * sizeof(*hash));
	start_clock();
	sweep(&core, pfn, count, hash);
	stage("read and hash");
	for (size_t i = 0; i < count; i++)
		results.checksum += hash[i] * (2 * pfn[i] + 1);
	results.frames = count;
	print_json(&results, count);
	return 0;
}
