#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL /* compiled here, for this processor: the library's has SSE2 only */
#include <xxhash.h>

void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	fprintf(stderr, errno ? ": %s\n" : "\n", strerror(errno));
	exit(1);
}

void *allocate(size_t size)
{
	void *memory = calloc(1, size ? size : 1);

	if (!memory)
		die("no memory");
	return memory;
}

uint64_t *read_numbers(const char *path, size_t *count)
{
	int fd = open(path, O_RDONLY);
	struct stat about;
	uint64_t *numbers;

	if (fd < 0 || fstat(fd, &about))
		die("%s", path);
	numbers = allocate(about.st_size);
	must_read(fd, numbers, about.st_size, 0);
	close(fd);
	*count = about.st_size / 8;
	return numbers;
}

void must_read(int fd, void *buffer, size_t size, uint64_t offset)
{
	while (size) {
		ssize_t got = pread(fd, buffer, size, offset);

		if (got <= 0)
			die("read of %zu bytes at %#llx", size, (unsigned long long)offset);
		buffer = (char *)buffer + got;
		size -= got;
		offset += got;
	}
}

/* ---- the clock ---- */

static struct {
	const char *name;
	double seconds;
} stages[16], parts[16];
static int nr_stages, nr_parts;
static double last, cpu_before;

static double seconds_of(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

double now(void)
{
	return seconds_of(CLOCK_MONOTONIC);
}

void start_clock(void)
{
	cpu_before = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
	last = now();
}

void stage(const char *name)
{
	double end = now();

	stages[nr_stages].name = name;
	stages[nr_stages++].seconds = end - last;
	last = end;
}

void part(const char *name, double seconds)
{
	parts[nr_parts].name = name;
	parts[nr_parts++].seconds = seconds;
}

/* ---- hashing ---- */

static unsigned char secret[XXH3_SECRET_DEFAULT_SIZE];
static uint64_t hash_seed;

void set_seed(uint64_t seed)
{
	hash_seed = seed;
	XXH3_generateSecret_fromSeed(secret, seed);
}

uint64_t hash_page(const void *page)
{
	if (!hash_seed)
		return XXH3_64bits(page, PAGE);
	return XXH3_64bits_withSecretandSeed(page, PAGE, secret, sizeof(secret), hash_seed);
}

/* ---- grouping ---- */

struct content {
	uint64_t hash;
	uint32_t frames, mappings;
};

/* Open addressing, at most half full. The first time a content is met it is neither shared nor
 * sharing: its second frame makes it so. */
void group(const uint64_t *pfn, const uint64_t *hash, const uint32_t *mapped, size_t frames, struct results *results)
{
	size_t size = 2;
	struct content *table;

	while (size < 2 * frames)
		size *= 2;
	table = allocate(size * sizeof(*table));
	for (size_t i = 0; i < frames; i++) {
		size_t slot = hash[i] & (size - 1);

		while (table[slot].frames && table[slot].hash != hash[i])
			slot = (slot + 1) & (size - 1);
		table[slot].hash = hash[i];
		table[slot].mappings += mapped[i];
		if (!table[slot].frames++)
			results->contents++;
		results->mappings += mapped[i];
		results->checksum += hash[i] * (2 * pfn[i] + 1);
	}
	for (size_t slot = 0; slot < size; slot++)
		if (table[slot].frames > 1) {
			results->shared++;
			results->sharing += table[slot].mappings - 1;
		}
	results->frames = frames;
	free(table);
}

/* ---- output ---- */

/* Not ru_maxrss: that begins with what the parent had when it forked. */
static unsigned long peak_kib(void)
{
	FILE *status = fopen("/proc/self/status", "r");
	char line[256];
	unsigned long kib = 0;

	while (status && fgets(line, sizeof(line), status))
		if (sscanf(line, "VmHWM: %lu", &kib) == 1)
			break;
	if (status)
		fclose(status);
	return kib;
}

void print_json(const struct results *results, uint64_t pages)
{
	double cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_before, total = 0;

	printf("{\"stages\": {");
	for (int i = 0; i < nr_stages; i++) {
		printf("%s\"%s\": %.6f", i ? ", " : "", stages[i].name, stages[i].seconds);
		total += stages[i].seconds;
	}
	printf("}, \"parts\": {");
	for (int i = 0; i < nr_parts; i++)
		printf("%s\"%s\": %.6f", i ? ", " : "", parts[i].name, parts[i].seconds);
	printf("}, \"seconds\": %.6f, \"cpu\": %.6f, \"pages\": %llu, \"peak_rss\": %lu", total, cpu,
	       (unsigned long long)pages, peak_kib() * 1024);
	if (results)
		printf(", \"results\": {\"frames\": %llu, \"checksum\": \"%016llx\"",
		       (unsigned long long)results->frames, (unsigned long long)results->checksum);
	if (results && results->contents)
		printf(", \"mappings\": %llu, \"contents\": %llu, \"pages_shared\": %llu, \"pages_sharing\": %llu",
		       (unsigned long long)results->mappings, (unsigned long long)results->contents,
		       (unsigned long long)results->shared, (unsigned long long)results->sharing);
	printf(results ? "}}\n" : "}\n");
}
