// SPDX-License-Identifier: Apache-2.0
/*
 * CVE-2026-52923 (ipc/util.c): who restores a checkpoint may ask for the next identifier, and for one more than there are. It
 * is given, and stands for two objects: 32768 is the first slot with sequence number 1, too.
 */
#define _GNU_SOURCE
#include "holes.h"

#include <errno.h>
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>

/* The last slot of 32768 (include/linux/ipc_namespace.h, IPCMNI). */
static const char LAST[] = "32767";

static int next_queue(void)
{
	if (put("/proc/sys/kernel/msg_next_id", LAST))
		cannot_tell("msg_next_id");
	return msgget(IPC_PRIVATE, 0600);
}

enum verdict ipc_next_id(void)
{
	/* Its queues are gone with it. */
	enter_own(CLONE_NEWIPC);
	if (next_queue() < 0)
		cannot_tell("the last slot is not to be had");
	if (next_queue() >= 0)
		return OPEN;
	if (errno != ENOSPC)
		cannot_tell("msgget");
	return CLOSED;
}
