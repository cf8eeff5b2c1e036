/*
 * A process to look at: live MIB. Pages of its own, none in a THP, half of them in pairs; like
 * many real ones they are half random. Says "ready", and ends with its input.
 */
#include "common.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t pages = (argc > 1 ? atol(argv[1]) : 16) << 8;
	char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || madvise(memory, pages * PAGE, MADV_NOHUGEPAGE))
		die("mmap");
	for (size_t i = 0; i < pages; i++) {
		uint64_t *word = (uint64_t *)(memory + i * PAGE), content = i < pages / 2 ? i : i | 1;
		uint64_t x = (content + 1) * 0x9e3779b97f4a7c15ULL;

		for (size_t j = 0; j < PAGE / 8; j += 2) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			word[j] = x;
			word[j + 1] = content;
		}
	}
	puts("ready");
	fflush(stdout);
	while (read(0, &pages, 1) == 1)
		;
	return 0;
}
