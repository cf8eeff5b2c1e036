/* What the C programs of the benchmark share: clock, runs, hashing, counting, output as JSON. */
#ifndef BENCHMARK_COMMON_H
#define BENCHMARK_COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PAGE 4096UL
#define MAX_RUN 256 /* pages a read, as MAX_RUN of sweep.py */
#define MAX_GAP 5 /* as MAX_GAP of sweep.py */

void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void *allocate(size_t size);
/* A file of 8-byte numbers, *count of them. */
uint64_t *read_numbers(const char *path, size_t *count);
/* All of it, or the program ends. */
void must_read(int fd, void *buffer, size_t size, uint64_t offset);

/* Stages follow each other: each ends where the next one begins. */
void start_clock(void);
void stage(const char *name);
/* A part of a stage, told beside it. */
double now(void);
void part(const char *name, double seconds);

/* XXH3-64 as xxh3_64_intdigest(page, seed). The seed's secret is made once. */
void set_seed(uint64_t seed);
uint64_t hash_page(const void *page);

struct results {
	uint64_t mappings, frames, contents, shared, sharing;
	uint64_t checksum; /* sum of hash * (2 * pfn + 1): no order, and each hash at its frame */
};

/* Groups equal hashes; mapped[i]: mappings of frame i. */
void group(const uint64_t *pfn, const uint64_t *hash, const uint32_t *mapped, size_t frames, struct results *results);

/* The program's only line: stages, results (NULL: none; no contents: not grouped), peak RSS. */
void print_json(const struct results *results, uint64_t pages);

#endif
