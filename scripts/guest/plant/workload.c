// SPDX-License-Identifier: GPL-2.0
/*
 * Keeps every processor busy, and checks its own results: `workload FILE [COPIES]`.
 *
 * Pairs of processes pass blocks through pipes, and turns by futex, poll and signals; others write files and read them again,
 * fork, sleep until timers fire, and keep values in vector registers. Ten times a second FILE gets three numbers: all rounds, the
 * rounds of the slowest, and what was wrong. SIGTERM ends it: it prints `workload: R rounds, W wrong`, and fails if anything
 * was wrong.
 *
 * Nobody waits for ever: a wake-up that does not come within LATE seconds is lost, and that is wrong.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LATE 60
#define BLOCK 4096
#define WORKERS 128

struct worker {
	_Atomic unsigned long rounds;
	_Atomic unsigned long wrong;
};

struct shared {
	_Atomic int stop;
	_Atomic int turns[WORKERS];
	struct worker workers[WORKERS];
};

static struct shared *shared;
static struct worker *self;

static void check(int good, const char *what)
{
	if (good)
		return;
	if (atomic_fetch_add(&self->wrong, 1) < 3)
		fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
}

/* What a block holds tells its number, and each byte its place. */
static void fill(unsigned char *block, unsigned long number)
{
	unsigned long i;

	memcpy(block, &number, sizeof(number));
	for (i = sizeof(number); i < BLOCK; i++)
		block[i] = (unsigned char)(number * 31 + i * 7 + (i >> 8));
}

static int is_filled(const unsigned char *block, unsigned long number)
{
	static unsigned char wanted[BLOCK];

	fill(wanted, number);
	return !memcmp(block, wanted, BLOCK);
}

/* Whether there is something to read in time. */
static int is_readable(int file)
{
	struct pollfd waiting = { .fd = file, .events = POLLIN };

	return poll(&waiting, 1, LATE * 1000) == 1;
}

static int read_all(int file, void *to, size_t count)
{
	size_t done = 0;

	while (done < count) {
		ssize_t got = is_readable(file) ? read(file, (char *)to + done, count - done) : -1;

		if (got <= 0)
			return 0;
		done += (size_t)got;
	}
	return 1;
}

static int write_all(int file, const void *from, size_t count)
{
	size_t done = 0;

	while (done < count) {
		ssize_t put = write(file, (const char *)from + done, count - done);

		if (put <= 0)
			return 0;
		done += (size_t)put;
	}
	return 1;
}

/* The other half of a pair ends when its pipe does, or with its parent. */
static pid_t other_half(void)
{
	pid_t pid = fork();

	if (pid == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

/* Blocks go to another process, which sends them back. */
static void pass_blocks(int index)
{
	static unsigned char block[BLOCK];
	int there[2], back[2];
	unsigned long number;

	(void)index;
	if (pipe(there) || pipe(back))
		return check(0, "pipe");
	if (other_half() == 0) {
		close(there[1]);
		for (number = 0; read_all(there[0], block, BLOCK); number++) {
			check(is_filled(block, number), "a block has changed on its way there");
			write_all(back[1], block, BLOCK);
		}
		_exit(0);
	}
	for (number = 0; !shared->stop; number++) {
		fill(block, number);
		check(write_all(there[1], block, BLOCK), "a block was not written");
		memset(block, 0, BLOCK);
		check(read_all(back[0], block, BLOCK), "no block came back");
		check(is_filled(block, number), "a block has changed on its way back");
		self->rounds++;
	}
	close(there[1]);
}

/* A byte goes to and fro; whoever waits for it is inside read, without poll. */
static void pass_bytes(int index)
{
	int there[2], back[2];
	unsigned char sent, got;

	(void)index;
	if (pipe(there) || pipe(back))
		return check(0, "pipe");
	if (other_half() == 0) {
		close(there[1]);
		while (read(there[0], &got, 1) == 1) {
			got ^= 0x5a;
			if (write(back[1], &got, 1) != 1)
				break;
		}
		_exit(0);
	}
	for (sent = 0; !shared->stop; sent++) {
		check(write(there[1], &sent, 1) == 1, "a byte was not written");
		alarm(LATE);
		check(read(back[0], &got, 1) == 1 && got == (sent ^ 0x5a), "another byte came back");
		self->rounds++;
	}
	alarm(0);
	close(there[1]);
}

static void write_files(int index)
{
	static unsigned char block[BLOCK];
	unsigned long number, at;
	char name[64];

	snprintf(name, sizeof(name), "/workload.%d", index);
	for (number = 0; !shared->stop; number++) {
		int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);

		for (at = 0; at < 8; at++) {
			fill(block, number + at);
			check(pwrite(file, block, BLOCK, (off_t)(at * BLOCK)) == BLOCK, "pwrite");
		}
		for (at = 0; at < 8; at++) {
			memset(block, 0, BLOCK);
			check(read(file, block, BLOCK) == BLOCK, "read");
			check(is_filled(block, number + at), "a file has other bytes");
		}
		check(read(file, block, 1) == 0, "a file has no end");
		check(close(file) == 0, "close");
		self->rounds++;
	}
	unlink(name);
}

static void wait_for_turn(_Atomic int *turn, int wanted)
{
	struct timespec late = { .tv_sec = LATE };
	int now;

	while ((now = *turn) != wanted && now >= 0) {
		long error = syscall(SYS_futex, turn, FUTEX_WAIT, now, &late, NULL, 0);

		check(error == 0 || errno == EAGAIN || errno == EINTR, "a futex's wake-up is lost");
	}
}

static void give_turn(_Atomic int *turn, int to)
{
	*turn = to;
	syscall(SYS_futex, turn, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void take_turns(int index)
{
	_Atomic int *turn = &shared->turns[index];

	if (other_half() == 0) {
		while (*turn >= 0) {
			wait_for_turn(turn, 1);
			if (*turn == 1)
				give_turn(turn, 0);
		}
		_exit(0);
	}
	while (!shared->stop) {
		give_turn(turn, 1);
		wait_for_turn(turn, 0);
		self->rounds++;
	}
	give_turn(turn, -1);
}

static void make_children(int index)
{
	int number, status;

	(void)index;
	for (number = 0; !shared->stop; number++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(number & 0x7f);
		check(pid > 0 && waitpid(pid, &status, 0) == pid, "a child is lost");
		check(WIFEXITED(status) && WEXITSTATUS(status) == (number & 0x7f), "a child has ended otherwise");
		self->rounds++;
	}
}

/* Numbers go to another process and back, by signals that queue. */
static void send_signals(int index)
{
	struct timespec late = { .tv_sec = LATE };
	union sigval number = { .sival_int = 0 };
	siginfo_t got;
	sigset_t set;
	pid_t pid;

	(void)index;
	sigemptyset(&set);
	sigaddset(&set, SIGRTMIN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	pid = other_half();
	if (pid == 0) {
		while (sigtimedwait(&set, &got, &late) == SIGRTMIN) {
			got.si_value.sival_int++;
			sigqueue(getppid(), SIGRTMIN, got.si_value);
		}
		_exit(0);
	}
	while (!shared->stop) {
		check(sigqueue(pid, SIGRTMIN, number) == 0, "sigqueue");
		check(sigtimedwait(&set, &got, &late) == SIGRTMIN, "a signal is lost");
		check(got.si_value.sival_int == number.sival_int + 1, "another signal came");
		number.sival_int += 2;
		self->rounds++;
	}
	kill(pid, SIGKILL);
}

static void sleep_shortly(int index)
{
	struct timespec before, after, pause = { .tv_nsec = 1000000 };

	(void)index;
	while (!shared->stop) {
		long long slept;

		clock_gettime(CLOCK_MONOTONIC, &before);
		check(clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL) == 0, "clock_nanosleep");
		clock_gettime(CLOCK_MONOTONIC, &after);
		slept = (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
		check(slept >= pause.tv_nsec, "a timer has fired too early");
		check(slept < LATE * 1000000000LL, "a timer has fired too late");
		self->rounds++;
	}
}

/* Registers that the kernel has to keep for each task. */
static void keep_registers(int index)
{
	typedef unsigned long vector __attribute__((vector_size(16)));
	unsigned long step;

	while (!shared->stop) {
		vector sum = { 0, 0 }, one = { (unsigned long)index + 1, 3 };

		for (step = 0; step < 200000; step++) {
			sum += one;
			__asm__ volatile("" : "+x"(sum), "+x"(one));
		}
		check(sum[0] == 200000 * ((unsigned long)index + 1) && sum[1] == 600000, "registers have changed");
		sched_yield();
		self->rounds++;
	}
}

static void (*const WORK[])(int) = {
	pass_blocks, pass_bytes, write_files, take_turns, make_children, send_signals, sleep_shortly, keep_registers,
};
#define KINDS ((int)(sizeof(WORK) / sizeof(*WORK)))

static void sum_up(int workers, unsigned long *rounds, unsigned long *least, unsigned long *wrong)
{
	int i;

	*rounds = *wrong = 0;
	*least = ~0UL;
	for (i = 0; i < workers; i++) {
		unsigned long own = shared->workers[i].rounds;

		*rounds += own;
		*least = own < *least ? own : *least;
		*wrong += shared->workers[i].wrong;
	}
}

static void report(const char *path, int workers)
{
	unsigned long rounds, least, wrong;
	char next[256];
	FILE *file;

	snprintf(next, sizeof(next), "%s.next", path);
	sum_up(workers, &rounds, &least, &wrong);
	file = fopen(next, "w");
	if (!file)
		return;
	fprintf(file, "%lu %lu %lu\n", rounds, least, wrong);
	fclose(file);
	rename(next, path);
}

int main(int count, char **words)
{
	struct timespec pause = { .tv_nsec = 100000000 };
	unsigned long rounds, least, wrong, killed = 0;
	int workers, i, status;
	sigset_t end;

	workers = KINDS * (count > 2 ? atoi(words[2]) : 1);
	if (count < 2 || workers < 1 || workers > WORKERS)
		return fprintf(stderr, "workload FILE [COPIES]\n"), 2;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return perror("workload: mmap"), 2;
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigprocmask(SIG_BLOCK, &end, NULL);
	for (i = 0; i < workers; i++) {
		pid_t pid = fork();

		if (pid < 0)
			return perror("workload: fork"), 2;
		if (pid == 0) {
			sigprocmask(SIG_UNBLOCK, &end, NULL);
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			self = &shared->workers[i];
			WORK[i % KINDS](i);
			_exit(0);
		}
	}
	while (sigtimedwait(&end, NULL, &pause) != SIGTERM)
		report(words[1], workers);
	shared->stop = 1;
	/* Whoever does not end takes all with it. */
	alarm(2 * LATE);
	while (wait(&status) > 0)
		killed += !WIFEXITED(status);
	sum_up(workers, &rounds, &least, &wrong);
	wrong += killed + (least == 0);
	printf("workload: %lu rounds, %lu wrong\n", rounds, wrong);
	return wrong != 0;
}
