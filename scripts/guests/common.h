/* What the programs in the guests share: pages by content, sysfs, ksmd's passes, counters. */
#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif
#define MPOL_BIND 2
#define MPOL_INTERLEAVE 3

#define PAGE page_size
#define KSM "/sys/kernel/mm/ksm/"
#define THP "/sys/kernel/mm/transparent_hugepage/"

extern long page_size;

/* What read_file() read. Shared memory, so that reading makes no page that ksmd looks at. */
extern char *text;

void die(const char *format, ...);

/* Contents are named by a number; equal numbers are equal pages in every process. */
void fill(char *page, uint64_t content);
void fill_all(char *start, int pages, uint64_t content);
void fill_each(char *start, int pages, uint64_t first);
/* Pages of the content `base` that differ in their last eight bytes only. */
void fill_nearly_equal(char *start, int pages, uint64_t base, uint64_t first);
/* Pages of first, first + 1 … of which only a half compresses, as with many real ones. */
void fill_half_random(char *start, int pages, uint64_t first);
void write_zeros(char *start, int pages);
void read_only_touch(const char *start, int pages);

int write_file(const char *path, const char *value);
void must_write(const char *path, const char *value);
long read_file(const char *path);

void opt_in(void);
void opt_out(void);
/* All that opt_in() writes to its own memory, ahead of time. */
void rehearse_opt_in(void);

/* khugepaged and kcompactd must not move or put together what ksmd looks at. */
void quiet_kernel(void);
void load_module(const char *path);

/* Directories of numbers under path: processes, or the threads of one. */
int list_numbers(const char *path, int *numbers, int space);
/* The lines of a file that begin with one of names ("" for all), each behind prefix. */
void print_lines(const char *path, const char *prefix, const char *names);
void print_counters(int pass, const int *pids, int nr_pids);
/* pass 1 starts ksmd. */
void one_pass(int pass);
/* One batch of so many pages, which should not end the pass. number 1 starts ksmd, too. */
void one_batch(int number, long pages);

#endif
