// SPDX-License-Identifier: GPL-2.0
/* Calls getpid(2) many times: `caller COUNT`. Says when it begins and when it is done. */

#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **words)
{
	long left = count > 1 ? atol(words[1]) : 0;

	puts("calls begin");
	fflush(stdout);
	while (left-- > 0)
		syscall(SYS_getpid);
	puts("calls end");
	return 0;
}
