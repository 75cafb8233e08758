// SPDX-License-Identifier: Apache-2.0
/*
 * Says whether a hole of the running kernel is open, by what any user of the system sees:
 *
 *	holes NAME
 *
 * prints one line, `NAME: open` or `NAME: closed`, and ends with 0; or `NAME: cannot tell: WHY`, and ends with 2. It needs
 * root, does no harm in either case, and can be run as often as one likes.
 */
#define _GNU_SOURCE
#include "holes.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define MOST_MODULES 8

static const struct {
	const char *name;
	enum verdict (*look)(void);
} HOLES[] = {
	{ "ipc-next-id", ipc_next_id },
	{ "time-namespace", time_namespace },
	{ "bpf-next-key", bpf_next_key },
	{ "io-uring-pin", io_uring_pin },
	{ "nexthop-group", nexthop_group },
	{ "multiport-range", multiport_range },
	{ "iso-handle", iso_handle },
};

static const char *name = "holes";

void cannot_tell(const char *what)
{
	const char *why = errno ? strerror(errno) : NULL;

	printf("%s: cannot tell: %s%s%s\n", name, what, why ? ": " : "", why ? why : "");
	exit(2);
}

void enter_own(int namespaces)
{
	if (unshare(namespaces))
		cannot_tell("no namespaces of its own");
	/* Or mounts would be seen outside, too. */
	if (namespaces & CLONE_NEWNS && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		cannot_tell("mounts cannot be made private");
}

void need_modules(const char *const *names)
{
	const char *argv[MOST_MODULES + 4] = { "modprobe", "-q", "-a" };
	int status = -1;
	unsigned i;
	pid_t child;

	for (i = 0; i < MOST_MODULES && names[i]; i++)
		argv[i + 3] = names[i];
	child = fork();
	if (child < 0)
		cannot_tell("fork");
	if (child == 0) {
		execvp(argv[0], (char *const *)argv);
		_exit(127);
	}
	if (waitpid(child, &status, 0) != child)
		cannot_tell("waitpid");
	errno = 0;
	if (status)
		cannot_tell("modprobe fails");
}

int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t done;
	int error;

	if (fd < 0)
		return -1;
	done = write(fd, text, strlen(text));
	error = errno;
	close(fd);
	errno = error;
	return done < 0 ? -1 : 0;
}

int main(int argc, char **argv)
{
	unsigned i;

	for (i = 0; argc == 2 && i < COUNT(HOLES); i++) {
		if (strcmp(argv[1], HOLES[i].name))
			continue;
		name = HOLES[i].name;
		printf("%s: %s\n", name, HOLES[i].look() == OPEN ? "open" : "closed");
		return 0;
	}
	fprintf(stderr, "usage: holes NAME, where NAME is one of:");
	for (i = 0; i < COUNT(HOLES); i++)
		fprintf(stderr, " %s", HOLES[i].name);
	fprintf(stderr, "\n");
	return 2;
}
