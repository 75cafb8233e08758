/* SPDX-License-Identifier: GPL-2.0 */
/* What the attacks have in common. */

#ifndef LUCOS_HOSTILE_H
#define LUCOS_HOSTILE_H

#include <linux/types.h>

/* Something that a guest can do behind the host's back, and undo. */
struct attack {
	const char *name;
	/* Gets ready, and returns 0 or a negative error. */
	int (*begin)(void);
	/* Does it, for the `round`-th time; neither sleeps. */
	void (*on)(unsigned long round);
	/* Undoes it. */
	void (*off)(void);
	/* Clears up. */
	void (*end)(void);
	/* Has the guest do something, while it tells the truth, for which somebody has to look again; may be NULL. */
	void (*between)(void);
};

/* Any symbol of the kernel or of a module; NULL if there is none. */
void *hostile_symbol(const char *name);

/* The function that is patched, and the one that the patch brings. */
#define OLD "version_proc_show"
#define NEW "lucos_version_proc_show"

/* Bytes of the old function, whichever way they are reached; of the new one. */
extern const struct attack hostile_text, hostile_page, hostile_new_text, hostile_new_page;
/* What the kernel keeps of the patch's module; of tasks. */
extern const struct attack hostile_sections, hostile_stack, hostile_tasks;

#endif
