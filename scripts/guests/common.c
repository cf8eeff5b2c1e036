#include "common.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#endif

#define TEXT_SIZE (1L << 20)

long page_size;
char *text;

__attribute__((constructor)) static void prepare(void)
{
	page_size = sysconf(_SC_PAGESIZE);
	text = mmap(NULL, TEXT_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (text == MAP_FAILED)
		die("mmap");
}

void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf("@error ");
	vprintf(format, args);
	printf(": %s\n", strerror(errno));
	fflush(stdout);
	_exit(1); /* as PID 1: a panic, which ends QEMU */
}

/* ---- pages ---- */

/* A page that compresses well: one 64-byte pattern, repeated. */
void fill(char *page, uint64_t content)
{
	uint64_t pattern[8], x = (content + 1) * 0x9e3779b97f4a7c15ULL;
	volatile uint64_t *word = (volatile uint64_t *)page;

	for (int i = 0; i < 8; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		pattern[i] = x;
	}
	for (int i = 0; i < PAGE / 8; i++)
		word[i] = pattern[i & 7];
}

void fill_all(char *start, int pages, uint64_t content)
{
	for (int i = 0; i < pages; i++)
		fill(start + i * PAGE, content);
}

void fill_each(char *start, int pages, uint64_t first)
{
	for (int i = 0; i < pages; i++)
		fill(start + i * PAGE, first + i);
}

void fill_nearly_equal(char *start, int pages, uint64_t base, uint64_t first)
{
	for (int i = 0; i < pages; i++) {
		fill(start + i * PAGE, base);
		((volatile uint64_t *)(start + (i + 1) * PAGE))[-1] += first + i + 1;
	}
}

void fill_half_random(char *start, int pages, uint64_t first)
{
	for (int i = 0; i < pages; i++) {
		volatile uint64_t *word = (volatile uint64_t *)(start + i * PAGE);
		uint64_t content = first + i, x = (content + 1) * 0x9e3779b97f4a7c15ULL;

		for (int j = 0; j < PAGE / 8; j += 2) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			word[j] = x;
			word[j + 1] = content;
		}
	}
}

void write_zeros(char *start, int pages)
{
	for (int i = 0; i < pages; i++)
		((volatile char *)start)[i * PAGE] = 0;
}

void read_only_touch(const char *start, int pages)
{
	for (int i = 0; i < pages; i++)
		(void)((const volatile char *)start)[i * PAGE];
}

/* ---- files ---- */

int write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY), ok;

	if (fd < 0)
		return -1;
	ok = write(fd, value, strlen(value)) < 0 ? -1 : 0;
	close(fd);
	return ok;
}

void must_write(const char *path, const char *value)
{
	if (write_file(path, value))
		die("write %s to %s", value, path);
}

long read_file(const char *path)
{
	long used = 0, got;
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return -1;
	while ((got = read(fd, text + used, TEXT_SIZE - 1 - used)) > 0)
		used += got;
	close(fd);
	if (got < 0)
		return -1;
	text[used] = 0;
	return used;
}

/* ---- opting in ---- */

/* Kernels without the prctl (before 6.4) know MADV_(UN)MERGEABLE only. -1: nothing. */
static void advise_all(int advice)
{
	char *line = text;

	if (read_file("/proc/self/maps") < 0)
		die("/proc/self/maps");
	while (*line) {
		unsigned long start, end;

		sscanf(line, "%lx-%lx", &start, &end);
		if (advice >= 0)
			madvise((void *)start, end - start, advice); /* EINVAL: not for this VMA */
		line = strchr(line, '\n') + 1;
	}
}

void opt_in(void)
{
	if (prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0))
		advise_all(MADV_MERGEABLE);
}

void opt_out(void)
{
	if (prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0))
		advise_all(MADV_UNMERGEABLE);
}

void rehearse_opt_in(void)
{
	advise_all(-1);
}

/* ---- the kernel ---- */

void quiet_kernel(void)
{
	must_write(THP "enabled", "madvise");
	must_write(THP "defrag", "madvise");
	must_write(THP "use_zero_page", "1");
	must_write(THP "khugepaged/scan_sleep_millisecs", "100000000");
	/* It wakes up all the same when a first process advises MADV_HUGEPAGE. */
	must_write(THP "khugepaged/max_ptes_none", "0");
	must_write(THP "khugepaged/max_ptes_swap", "0");
	write_file(THP "khugepaged/max_ptes_shared", "0"); /* 5.8+ */
	write_file("/proc/sys/vm/compaction_proactiveness", "0"); /* 5.9+, CONFIG_COMPACTION */
	/* Its thread holds a reference on one page after another; what has it then does not merge. */
	write_file("/sys/module/damon_stat/parameters/enabled", "N"); /* 6.17+, CONFIG_DAMON_STAT */
}

void load_module(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return;
	if (syscall(SYS_finit_module, fd, "", 0))
		die("%s", path);
	close(fd);
	unlink(path);
}

/* ---- printing ---- */

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

int list_numbers(const char *path, int *numbers, int space)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	int count = 0;

	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && count < space)
			numbers[count++] = atoi(entry->d_name);
	closedir(dir);
	qsort(numbers, count, sizeof(int), by_number);
	return count;
}

void print_lines(const char *path, const char *prefix, const char *names)
{
	char *line = text, *end, name[64];

	if (read_file(path) < 0)
		return;
	for (; *line; line = end + 1) {
		end = strchr(line, '\n');
		if (!end)
			end = line + strlen(line) - 1;
		snprintf(name, sizeof(name), " %.*s ", (int)strcspn(line, ": \t\n"), line);
		if (!*names || strstr(names, name))
			printf("%s%.*s\n", prefix, (int)(end - line), line);
	}
}

static void print_value(const char *prefix, const char *path, const char *name)
{
	if (read_file(path) > 0)
		printf("%s%s %s\n", prefix, name, strtok(text, "\n"));
}

void print_counters(int pass, const int *pids, int nr_pids)
{
	char path[320], prefix[32];
	struct dirent *entry;
	DIR *dir = opendir(KSM);

	if (!dir)
		die(KSM);
	snprintf(prefix, sizeof(prefix), "@ksm %d ", pass);
	while ((entry = readdir(dir))) {
		snprintf(path, sizeof(path), KSM "%s", entry->d_name);
		if (entry->d_name[0] != '.')
			print_value(prefix, path, entry->d_name);
	}
	closedir(dir);

	read_file("/proc/sys/vm/stat_refresh"); /* folds the per-CPU differences, where it exists */
	snprintf(prefix, sizeof(prefix), "@vmstat %d ", pass);
	print_lines("/proc/vmstat", prefix,
		    " nr_anon_pages nr_anon_transparent_hugepages thp_split_page thp_split_page_failed"
		    " thp_split_pmd cow_ksm ksm_swpin_copy pswpout ");
	for (int i = 0; i < nr_pids; i++) {
		snprintf(prefix, sizeof(prefix), "@ksm_stat %d %d ", pass, pids[i]);
		snprintf(path, sizeof(path), "/proc/%d/ksm_stat", pids[i]);
		print_lines(path, prefix, "");
		snprintf(path, sizeof(path), "/proc/%d/ksm_merging_pages", pids[i]);
		print_value(prefix, path, "ksm_merging_pages");
	}
}

/* ---- ksmd ---- */

static long full_scans(void)
{
	read_file(KSM "full_scans");
	return atol(text);
}

static void millisleep(int milliseconds)
{
	struct timespec time = { 0, milliseconds * 1000000L };

	nanosleep(&time, NULL);
}

/* pages_to_scan above the number of mappings makes a batch one whole pass, and writing another
 * sleep_millisecs wakes ksmd for exactly one more. */
void one_pass(int pass)
{
	long before = full_scans();
	char value[32];

	snprintf(value, sizeof(value), "%d", 1000000 + pass);
	must_write(KSM "sleep_millisecs", value);
	if (pass == 1) {
		must_write(KSM "pages_to_scan", "4000000");
		must_write(KSM "run", "1");
	}
	for (int i = 0; full_scans() == before; i++) {
		millisleep(10);
		if (i > 3000)
			die("ksmd does not finish pass %d", pass);
	}
	millisleep(50); /* ksmd goes to sleep */
	if (full_scans() != before + 1)
		die("pass %d was not one pass", pass);
}

static int ksmd_pid(void)
{
	int pids[256], count = list_numbers("/proc", pids, 256);
	char path[32];

	for (int i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "/proc/%d/comm", pids[i]);
		if (read_file(path) > 0 && !strcmp(text, "ksmd\n"))
			return pids[i];
	}
	die("no ksmd");
	return 0;
}

void one_batch(int number, long pages)
{
	char value[32], path[32];

	snprintf(path, sizeof(path), "/proc/%d/stat", ksmd_pid());
	snprintf(value, sizeof(value), "%ld", pages);
	must_write(KSM "pages_to_scan", value);
	snprintf(value, sizeof(value), "%d", 1000000 + number);
	must_write(KSM "sleep_millisecs", value);
	if (number == 1)
		must_write(KSM "run", "1");
	/* Woken up it is running; only when the batch is done its sleep can be interrupted. */
	do
		millisleep(50);
	while (read_file(path) > 0 && !strstr(text, ") S "));
	must_write(KSM "pages_to_scan", "4000000");
}
