// SPDX-License-Identifier: GPL-2.0
/* Calls pause(2) and says how that has ended: `pauser NAME`. SIGUSR1 ends it. */

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static void ignore(int number)
{
	(void)number;
}

int main(int count, char **words)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_handler = ignore;
	sigaction(SIGUSR1, &action, NULL);
	if (count > 1)
		prctl(PR_SET_NAME, words[1]);
	pause();
	printf("%s: pause ended with error %d\n", count > 1 ? words[1] : "pauser", errno);
	return 0;
}
