/* Physical memory in an ELF vmcore. */
#ifndef BENCHMARK_VMCORE_H
#define BENCHMARK_VMCORE_H

#include "common.h"

#define MAX_SEGMENTS 64

struct segment {
	uint64_t start, end, offset; /* physical; offset in the file */
};

struct vmcore {
	int fd;
	int nr_segments;
	struct segment segments[MAX_SEGMENTS];
};

void open_vmcore(struct vmcore *core, const char *path);
/* Where in the file; the program ends unless all `size` bytes are there in one piece. */
uint64_t file_offset(const struct vmcore *core, uint64_t address, size_t size);
void read_physical(const struct vmcore *core, void *buffer, uint64_t address, size_t size);

/* The end of the run of pfn[first] among `count` ascending ones: one read. */
size_t end_of_run(const uint64_t *pfn, size_t first, size_t count);
/* Reads and hashes the frames, with `parts` read and hash. */
void sweep(const struct vmcore *core, const uint64_t *pfn, size_t count, uint64_t *hash);

#endif
