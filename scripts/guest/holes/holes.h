/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of `holes` share. */
#ifndef HOLES_H
#define HOLES_H

enum verdict {
	OPEN,
	CLOSED,
};

/*
 * Each looks at one hole, and is run by root in a process of its own. What it makes is gone when that process ends, but for
 * modules, which stay loaded.
 */
enum verdict ipc_next_id(void);
enum verdict time_namespace(void);
enum verdict bpf_next_key(void);
enum verdict io_uring_pin(void);
enum verdict nexthop_group(void);
enum verdict multiport_range(void);
enum verdict iso_handle(void);

/* Says why neither verdict can be given, with errno if it is set, and ends the program. */
_Noreturn void cannot_tell(const char *what);

/* Gives the process namespaces of its own, in which it can change what it likes. */
void enter_own(int namespaces);

/* Loads modules, unless they are there or built in. */
void need_modules(const char *const *names);

/* Replaces the contents of a file in /proc. Returns 0, or -1 with errno. */
int put(const char *path, const char *text);

#endif
