#include "vmcore.h"

#include <elf.h>
#include <fcntl.h>
#include <stdlib.h>

void open_vmcore(struct vmcore *core, const char *path)
{
	Elf64_Ehdr header;
	Elf64_Phdr load;

	core->nr_segments = 0;
	core->fd = open(path, O_RDONLY);
	if (core->fd < 0)
		die("%s", path);
	must_read(core->fd, &header, sizeof(header), 0);
	for (int i = 0; i < header.e_phnum; i++) {
		must_read(core->fd, &load, sizeof(load), header.e_phoff + i * sizeof(load));
		if (load.p_type != PT_LOAD || !load.p_filesz)
			continue;
		if (core->nr_segments == MAX_SEGMENTS)
			die("%s: too many segments", path);
		core->segments[core->nr_segments++] =
			(struct segment){ load.p_paddr, load.p_paddr + load.p_filesz, load.p_offset };
	}
}

static const struct segment *find(const struct vmcore *core, uint64_t address)
{
	for (int i = 0; i < core->nr_segments; i++)
		if (core->segments[i].start <= address && address < core->segments[i].end)
			return &core->segments[i];
	die("%#llx is not in the dump", (unsigned long long)address);
}

uint64_t file_offset(const struct vmcore *core, uint64_t address, size_t size)
{
	const struct segment *segment = find(core, address);

	if (address + size > segment->end)
		die("%#llx: the dump ends there", (unsigned long long)address);
	return address - segment->start + segment->offset;
}

void read_physical(const struct vmcore *core, void *buffer, uint64_t address, size_t size)
{
	while (size) {
		const struct segment *segment = find(core, address);
		size_t here = size < segment->end - address ? size : segment->end - address;

		must_read(core->fd, buffer, here, address - segment->start + segment->offset);
		buffer = (char *)buffer + here;
		address += here;
		size -= here;
	}
}

size_t end_of_run(const uint64_t *pfn, size_t first, size_t count)
{
	size_t end = first + 1;

	while (end < count && pfn[end] - pfn[end - 1] <= MAX_GAP + 1 && pfn[end] - pfn[first] < MAX_RUN)
		end++;
	return end;
}

void sweep(const struct vmcore *core, const uint64_t *pfn, size_t count, uint64_t *hash)
{
	char *buffer = aligned_alloc(PAGE, MAX_RUN * PAGE);
	double reading = 0, hashing = 0;

	for (size_t first = 0, end; first < count; first = end) {
		double start = now(), middle;

		end = end_of_run(pfn, first, count);
		read_physical(core, buffer, pfn[first] * PAGE, (pfn[end - 1] - pfn[first] + 1) * PAGE);
		middle = now();
		for (size_t i = first; i < end; i++)
			hash[i] = hash_page(buffer + (pfn[i] - pfn[first]) * PAGE);
		reading += middle - start;
		hashing += now() - middle;
	}
	part("read", reading);
	part("hash", hashing);
	free(buffer);
}
