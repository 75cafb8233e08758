// SPDX-License-Identifier: Apache-2.0
/*
 * CVE-2026-93146 (kernel/time/namespace.c): the clocks of a time namespace can be put ahead by a number of nanoseconds that
 * is none, and all who add it to a time get a time that is none.
 */
#define _GNU_SOURCE
#include "holes.h"

#include <errno.h>
#include <sched.h>

/* It is read as an unsigned number, and kept as a signed one: -1. */
static const char BAD[] = "monotonic 0 18446744073709551615";
static const char GOOD[] = "monotonic 0 1";

enum verdict time_namespace(void)
{
	/* The namespace is for children, and there are none: no clock is read in it. */
	enter_own(CLONE_NEWTIME);
	if (put("/proc/self/timens_offsets", GOOD))
		cannot_tell("a good offset is refused");
	if (!put("/proc/self/timens_offsets", BAD))
		return OPEN;
	if (errno != EINVAL)
		cannot_tell("timens_offsets");
	return CLOSED;
}
