/*
 * The one program of the harness's guests. As PID 1 it carries out a script line by line; the
 * processes of the workload are the same program, and do what PID 1 sends them through a pipe.
 * A process writes nothing between two commands. See script.py for the lines.
 */
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define PROCESSES 40
#define COMMAND_FD 10 /* + process: its commands */
#define ACK_FD 60 /* read end; the write end is the next */
#define REGIONS 0x10000000000L /* 16 MiB each, so at the same address in every boot */
#define REGION_SIZE (16L << 20)
#define LOW 0x100000L /* region -1: below the program */
#define DATA_PAGES 64
#define NEARLY_EQUAL 2
#define CHUNK 1024 /* guest_run.py has it too */

struct command {
	char name[12];
	int process;
	uint32_t serial;
	long a[5];
};

struct ack {
	int process, pid;
};

static volatile uint64_t stamp; /* makes the page it is in differ from process to process */

/* ---- a process of the workload ---- */

static char *at(const struct command *c)
{
	return (char *)(c->a[0] < 0 ? LOW : REGIONS + c->a[0] * REGION_SIZE) + c->a[1] * PAGE;
}

static void map_region(const struct command *c)
{
	static const int kinds[] = { MAP_PRIVATE | MAP_ANONYMOUS, MAP_SHARED | MAP_ANONYMOUS, MAP_PRIVATE,
				     MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, MAP_DROPPABLE | MAP_ANONYMOUS };
	int kind = c->a[3], fd = kind == 2 ? open("/data", O_RDWR) : -1;
	void *start = mmap(at(c), c->a[2] * PAGE, PROT_READ | PROT_WRITE, kinds[kind] | MAP_FIXED, fd, 0);

	if (start == MAP_FAILED && kind != 4) /* MAP_DROPPABLE: 6.11+ */
		die("mmap region %ld, kind %d", c->a[0], kind);
	if (fd >= 0)
		close(fd);
}

static void write_same(char *start, long pages)
{
	for (long i = 0; i < pages; i++) {
		volatile char *byte = start + i * PAGE;

		*byte = *byte;
	}
}

/* io_uring's fixed buffers are pinned for good (FOLL_LONGTERM). */
static void pin(char *start, long pages)
{
	char params[120] = { 0 };
	struct iovec iov = { start, pages * PAGE };
	int fd = syscall(425, 1, params); /* io_uring_setup */

	if (fd < 0 || syscall(427, fd, 0, &iov, 1)) /* io_uring_register, IORING_REGISTER_BUFFERS */
		die("io_uring");
	/* The ring stays open: its buffers stay pinned until the process ends. */
}

/* A pipe keeps a reference on each page spliced into it. */
static void splice_pages(char *start, long pages)
{
	int pipes[2];
	struct iovec iov = { start, pages * PAGE };

	if (pages > 16 || pipe(pipes) || vmsplice(pipes[1], &iov, 1, 0) != pages * PAGE)
		die("vmsplice");
}

/* Until the guest ends: processes that come and go, and each maps, writes and unmaps. */
static void storm(void)
{
	if (fork())
		return;
	for (int i = 0;; i++) {
		char *start;

		usleep(500);
		if (fork())
			continue;
		start = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		fill_each(start, 64, i);
		munmap(start + 16 * PAGE, 16 * PAGE);
		usleep(5000);
		_exit(0);
	}
}

static void must(int failed, const struct command *c)
{
	if (failed)
		die("%s in process %d", c->name, c->process);
}

static int is(const struct command *c, const char *name)
{
	return !strcmp(c->name, name);
}

static void carry_out(const struct command *c)
{
	char *start = at(c);
	long pages = c->a[2];
	unsigned long nodes = c->a[3];

	if (is(c, "map"))
		map_region(c);
	else if (is(c, "fill"))
		fill_all(start, pages, c->a[3]);
	else if (is(c, "each"))
		fill_each(start, pages, c->a[3]);
	else if (is(c, "half"))
		fill_half_random(start, pages, c->a[3]);
	else if (is(c, "last"))
		fill_nearly_equal(start, pages, NEARLY_EQUAL, c->a[3]);
	else if (is(c, "zero"))
		for (long i = 0; i < pages * PAGE / 8; i++)
			((volatile uint64_t *)start)[i] = 0;
	else if (is(c, "touch"))
		read_only_touch(start, pages);
	else if (is(c, "same"))
		write_same(start, pages);
	else if (is(c, "advise"))
		must(madvise(start, pages * PAGE, c->a[3]), c);
	else if (is(c, "protect"))
		must(mprotect(start, pages * PAGE, c->a[3]), c);
	else if (is(c, "unmap"))
		must(munmap(start, pages * PAGE), c);
	else if (is(c, "lock"))
		must(mlock(start, pages * PAGE), c);
	else if (is(c, "bind")) /* a[3]: mask of nodes; several: interleaved */
		must(syscall(SYS_mbind, start, pages * PAGE, nodes & (nodes - 1) ? MPOL_INTERLEAVE : MPOL_BIND,
			     &nodes, 8 * sizeof(nodes), 0), c);
	else if (is(c, "pin"))
		pin(start, pages);
	else if (is(c, "splice"))
		splice_pages(start, pages);
	else if (is(c, "optin"))
		opt_in();
	else if (is(c, "optout"))
		opt_out();
	else if (is(c, "storm"))
		storm();
	else if (is(c, "rehearse"))
		rehearse_opt_in();
	else if (!is(c, "nop"))
		die("no command %s", c->name);
}

static void acknowledge(int process)
{
	struct ack ack = { process, getpid() };

	if (write(ACK_FD + 1, &ack, sizeof(ack)) != sizeof(ack))
		die("ack");
}

static void serve(int process)
{
	struct command c = { .serial = 0 };

	for (;;) {
		stamp = (uint64_t)c.serial << 8 | process;
		acknowledge(process);
		if (read(COMMAND_FD + process, &c, sizeof(c)) != sizeof(c))
			_exit(0);
		stamp = (uint64_t)c.serial << 8 | process;
		if (is(&c, "exit")) {
			acknowledge(process);
			_exit(0);
		}
		if (is(&c, "fork")) {
			if (fork() == 0)
				process = c.process = c.a[0];
			else
				continue; /* both acknowledge */
			continue;
		}
		carry_out(&c);
	}
}

/* ---- PID 1 ---- */

static int pid_of[PROCESSES], command_pipe[PROCESSES];

static void wait_for_ack(int process)
{
	struct pollfd fd = { ACK_FD, POLLIN, 0 };
	struct ack ack;

	if (poll(&fd, 1, 60000) != 1 || read(ACK_FD, &ack, sizeof(ack)) != sizeof(ack))
		die("process %d does not answer", process);
	if (!pid_of[ack.process]) {
		pid_of[ack.process] = ack.pid;
		printf("@pid %d %d\n", ack.process, ack.pid);
	}
}

static void start(int process)
{
	if (fork() == 0) {
		char number[8], *argv[] = { "/init", number, NULL };

		snprintf(number, sizeof(number), "%d", process);
		execv("/init", argv);
		die("exec");
	}
	wait_for_ack(process);
}

static void send(const char *name, char *arguments)
{
	static uint32_t serial;
	struct command c = { .serial = ++serial };
	char *end;

	strncpy(c.name, name, sizeof(c.name) - 1);
	c.process = strtol(arguments, &end, 0);
	for (int i = 0; i < 5 && *end; i++)
		c.a[i] = strtol(end, &end, 0);
	if (!pid_of[c.process])
		die("%s: process %d does not run", name, c.process);
	if (write(command_pipe[c.process], &c, sizeof(c)) != sizeof(c))
		die("send");
	wait_for_ack(c.process);
	if (is(&c, "fork"))
		wait_for_ack(c.a[0]);
	if (is(&c, "exit")) {
		while (!kill(pid_of[c.process], 0))
			usleep(1000);
		pid_of[c.process] = 0;
	}
}

static void make_data_file(void)
{
	int fd = open("/data", O_RDWR | O_CREAT, 0644);
	char page[PAGE];

	for (int i = 0; i < DATA_PAGES; i++) {
		fill(page, 4000 + i);
		if (write(fd, page, PAGE) != PAGE)
			die("/data");
	}
	close(fd);
}

static void make_node(const char *device, const char *name)
{
	char path[64];
	unsigned major, minor;

	snprintf(path, sizeof(path), "/sys/block/%s/dev", name);
	if (read_file(path) < 0 || sscanf(text, "%u:%u", &major, &minor) != 2)
		die("%s", path);
	if (mknod(device, S_IFBLK | 0600, makedev(major, minor)))
		die("mknod");
}

/* mkswap and swapon for a block device. */
static void swap_on(const char *name)
{
	char path[64], *page = calloc(1, PAGE);
	long long sectors;
	int fd;

	make_node("/swap", name);
	snprintf(path, sizeof(path), "/sys/block/%s/size", name);
	read_file(path);
	sectors = atoll(text);
	memcpy(page + PAGE - 10, "SWAPSPACE2", 10);
	((uint32_t *)page)[256] = 1; /* version */
	((uint32_t *)page)[257] = sectors / 8 - 1; /* last page */
	fd = open("/swap", O_WRONLY);
	if (write(fd, page, PAGE) != PAGE || fsync(fd) || close(fd))
		die("mkswap");
	if (swapon("/swap", 0))
		die("swapon");
	must_write("/proc/sys/vm/page-cluster", "0");
}

/* Read pages of a process as a debugger does, twice: that activates them. */
static void peek(char *arguments)
{
	char path[32], page[PAGE];
	struct command c = { .serial = 0 };
	int process, fd;
	long pages;

	if (sscanf(arguments, "%d %ld %ld %ld", &process, &c.a[0], &c.a[1], &pages) != 4)
		die("peek %s", arguments);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid_of[process]);
	fd = open(path, O_RDONLY);
	for (long i = 0; i < 2 * pages; i++)
		if (pread(fd, page, PAGE, (long)at(&c) + i % pages * PAGE) != PAGE)
			die("%s", path);
	close(fd);
}

static void mount_disk(void)
{
	make_node("/vda", "vda");
	mkdir("/disk", 0755);
	if (mount("/vda", "/disk", "ext4", MS_RDONLY, "") || mount("/proc", "/disk/proc", "", MS_BIND, "") ||
	    mount("/sys", "/disk/sys", "", MS_BIND, "") || mount("dev", "/disk/dev", "devtmpfs", 0, "") ||
	    mount("security", "/disk/sys/kernel/security", "securityfs", 0, "") ||
	    mount("cgroup", "/disk/sys/fs/cgroup", "cgroup2", 0, ""))
		die("/disk");
}

/* As switch_root does: who is in a chroot cannot have user namespaces. */
static int enter_disk(void)
{
	return unshare(CLONE_NEWNS) || chdir("/disk") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".");
}

/* A program of the disk: [NAME=VALUE …] PATH [ARGUMENT …]. */
static void run_program(char *words)
{
	char *argv[64], **program = argv;
	int count = 0, status;
	pid_t pid;

	for (char *word = strtok(words, " "); word && count < 63; word = strtok(NULL, " "))
		argv[count++] = word;
	argv[count] = NULL;
	signal(SIGCHLD, SIG_DFL);
	pid = fork();
	if (pid == 0) {
		for (; *program && **program != '/'; program++)
			putenv(*program);
		if (enter_disk())
			_exit(126);
		execv(*program, program);
		_exit(127);
	}
	waitpid(pid, &status, 0);
	signal(SIGCHLD, SIG_IGN);
	printf("@ran %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static int running(int *pids)
{
	int count = 0;

	for (int i = 0; i < PROCESSES; i++)
		if (pid_of[i])
			pids[count++] = pid_of[i];
	return count;
}

static void show(int pass)
{
	int pids[PROCESSES], count = running(pids);

	print_counters(pass, pids, count);
}

/* What reading must not change, of the processes and of the system. */
static void usage(const char *tag)
{
	int pids[PROCESSES], count = running(pids);
	char path[40], prefix[64];

	read_file("/proc/sys/vm/stat_refresh");
	snprintf(prefix, sizeof(prefix), "@usage %s 0 ", tag);
	print_lines("/proc/vmstat", prefix,
		    " nr_anon_pages nr_anon_transparent_hugepages thp_split_page thp_split_pmd pswpin ");
	for (int i = 0; i < count; i++) {
		snprintf(prefix, sizeof(prefix), "@usage %s %d ", tag, pids[i]);
		snprintf(path, sizeof(path), "/proc/%d/status", pids[i]);
		print_lines(path, prefix, " VmRSS VmSwap ");
		snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pids[i]);
		print_lines(path, prefix, " Anonymous AnonHugePages Swap ");
		snprintf(prefix, sizeof(prefix), "@usage %s %d stat ", tag, pids[i]);
		snprintf(path, sizeof(path), "/proc/%d/stat", pids[i]);
		print_lines(path, prefix, "");
	}
}

static void print_running(void)
{
	printf("@running");
	for (int i = 0; i < PROCESSES; i++)
		if (pid_of[i])
			printf(" %d", i);
	printf("\n");
}

/* A process acknowledges before it waits for its next command: let it get there. */
static void settle(void)
{
	int pids[PROCESSES], count = running(pids);
	char path[32];

	usleep(5000);
	for (int i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "/proc/%d/stat", pids[i]);
		while (read_file(path) > 0 && !strstr(text, ") S "))
			usleep(1000);
	}
}

static void wait_for_host(const char *line)
{
	char newline;

	settle();
	printf("%s\n", line);
	if (read(0, &newline, 1) != 1)
		die("no newline");
}

static int exists(const char *path)
{
	return access(path, F_OK) == 0;
}

static void carry_out_script(char *script)
{
	int pass = 0, dumping = 0;

	for (char *next, *line = script; *line; line = next) {
		char *name = line, *rest;

		next = strchr(line, '\n');
		*next++ = 0;
		rest = strchr(line, ' ');
		rest = rest ? rest + 1 : next - 1;
		rest[-(*rest != 0)] = 0;
		if (!strcmp(name, "need")) {
			if (!exists(rest)) {
				printf("@skip %s is missing\n", rest);
				printf("@done\n");
				return;
			}
		} else if (!strcmp(name, "write")) {
			char *value = strchr(rest, ' ');

			*value++ = 0;
			must_write(rest, value);
		} else if (!strcmp(name, "insmod")) {
			load_module(rest);
		} else if (!strcmp(name, "swap")) {
			if (exists("/sys/block/zram0")) {
				must_write("/sys/block/zram0/disksize", "67108864");
				swap_on("zram0");
			} else if (exists("/sys/block/ram0")) {
				swap_on("ram0");
			} else {
				printf("@skip no zram or brd for swap\n@done\n");
				return;
			}
		} else if (!strcmp(name, "disk")) {
			mount_disk();
		} else if (!strcmp(name, "run")) {
			run_program(rest);
		} else if (!strcmp(name, "usage")) {
			settle();
			usage(rest);
		} else if (!strcmp(name, "peek")) {
			peek(rest);
		} else if (!strcmp(name, "start")) {
			start(atoi(rest));
		} else if (!strcmp(name, "ready")) {
			show(0);
			wait_for_host("@ready");
		} else if (!strcmp(name, "wait")) {
			wait_for_host("@ready");
		} else if (!strcmp(name, "pass")) {
			settle();
			one_pass(++pass);
			show(pass);
		} else if (!strcmp(name, "cut")) {
			settle();
			one_batch(++pass, atol(rest));
			show(pass);
		} else if (!strcmp(name, "dumping")) {
			dumping = 1;
		} else if (!strcmp(name, "sleep")) {
			if (!dumping)
				usleep(atoi(rest) * 1000);
		} else if (!strcmp(name, "step")) {
			pass++;
			if (dumping) {
				print_running();
				wait_for_host("@step");
			} else {
				settle();
				if (pass == 1)
					show(0);
				one_pass(pass);
				show(pass);
			}
		} else {
			send(name, rest);
		}
	}
	printf("@done\n");
}

/* The script from the console, up to a NUL. Each CHUNK is acknowledged: a serial line has no
 * flow control. The guest's state is saved at "@idle", and every run goes on from there. */
static char *receive(void)
{
	static char script[1 << 20];
	struct termios raw;
	size_t used = 0;

	tcgetattr(0, &raw);
	raw.c_iflag = raw.c_lflag = 0;
	tcsetattr(0, TCSANOW, &raw);
	printf("@idle\n");
	while (used < sizeof(script) && read(0, script + used, 1) == 1) {
		if (!script[used++])
			return script;
		if (used % CHUNK == 0)
			printf("@more\n");
	}
	die("no script");
	return NULL;
}

static void run_init(void)
{
	int pipes[2];

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	if (mount("proc", "/proc", "proc", 0, "") || mount("sysfs", "/sys", "sysfs", 0, ""))
		die("mount");
	signal(SIGCHLD, SIG_IGN); /* inherited: no zombies anywhere */
	make_data_file();
	quiet_kernel();
	if (read_file("/sys/kernel/vmcoreinfo") > 0)
		printf("@vmcoreinfo %s", text);
	if (read_file("/proc/version") > 0)
		printf("@version %s", text);
	if (pipe(pipes))
		die("pipe");
	dup2(pipes[0], ACK_FD);
	dup2(pipes[1], ACK_FD + 1);
	for (int i = 0; i < PROCESSES; i++) {
		if (pipe(pipes))
			die("pipe");
		if (pipes[0] != COMMAND_FD + i) {
			dup2(pipes[0], COMMAND_FD + i);
			close(pipes[0]);
		}
		command_pipe[i] = fcntl(pipes[1], F_DUPFD_CLOEXEC, 100);
		close(pipes[1]);
	}
	carry_out_script(receive());
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (getpid() == 1)
		run_init();
	serve(atoi(argc > 1 ? argv[1] : "0"));
	return 0;
}
