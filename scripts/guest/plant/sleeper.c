// SPDX-License-Identifier: GPL-2.0
/* Sleeps in poll, a futex, or read(2) of a pipe until SIGUSR1 comes: `sleeper poll|futex|pipe`. Its name is the word. */

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static void ignore(int number)
{
	(void)number;
}

int main(int count, char **words)
{
	const char *where = count > 1 ? words[1] : "";
	struct pollfd waiting = { .events = POLLIN };
	struct sigaction action;
	int files[2], turn = 0;
	long slept;
	char byte;

	memset(&action, 0, sizeof(action));
	action.sa_handler = ignore;
	sigaction(SIGUSR1, &action, NULL);
	prctl(PR_SET_NAME, where);
	if (pipe(files))
		return perror("sleeper: pipe"), 1;
	waiting.fd = files[0];
	if (!strcmp(where, "poll"))
		slept = poll(&waiting, 1, -1);
	else if (!strcmp(where, "futex"))
		slept = syscall(SYS_futex, &turn, FUTEX_WAIT, 0, NULL, NULL, 0);
	else if (!strcmp(where, "pipe"))
		slept = read(files[0], &byte, 1);
	else
		return fprintf(stderr, "sleeper poll|futex|pipe\n"), 2;
	if (slept != -1 || errno != EINTR)
		return printf("%s: ended with %ld\n", where, slept), 1;
	printf("%s: woken\n", where);
	return 0;
}
