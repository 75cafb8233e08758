/* SPDX-License-Identifier: GPL-2.0 */
/* What the places have in common. */

#ifndef LUCOS_PLANT_H
#define LUCOS_PLANT_H

#ifdef __ASSEMBLY__

#include <linux/linkage.h>
#include <asm/ibt.h>
#include <asm/nospec-branch.h>

#else

#include <linux/atomic.h>
#include <linux/compiler.h>
#include <linux/wait.h>

/* A place where tasks or a processor can be held. */
struct plant_place {
	const char *name;
	/* How many are held in it. */
	int holds;
	/* Sends them there; they may arrive later. Returns 0 or a negative error. */
	int (*begin)(void);
	/* Clears up behind them; may be NULL. */
	void (*end)(void);
};

/* Whether those in the place are to stay. */
extern int plant_held;
/* How many are in it. */
extern atomic_t plant_inside;
/* Woken when they may leave. */
extern wait_queue_head_t plant_freed;

/* Stays in the function that this is used in. */
static __always_inline void plant_spin(void)
{
	atomic_inc(&plant_inside);
	while (READ_ONCE(plant_held))
		cpu_relax();
	atomic_dec(&plant_inside);
}

/* The processor that is held, and that the threads run on: the last one, which the test keeps free of others. */
unsigned int plant_cpu(void);

/* Starts `count` threads on it. Returns 0 or a negative error. */
int plant_threads(int (*run)(void *), const char *name, int count);
/* Goes to sleep until it may leave; functions.S calls it, too. */
void plant_sleep(void);

int plant_begin_irq(void);
int plant_begin_softirq(void);
int plant_begin_nmi(void);
void plant_end_nmi(void);

int plant_begin_prologue(void);
int plant_begin_module(void);
int plant_begin_forged_offset(void);
int plant_begin_forged_end(void);
int plant_begin_forged_leap(void);

int plant_begin_kprobe(void);
int plant_begin_optprobe(void);
void plant_end_probe(void);
int plant_begin_exiting(void);
void plant_end_exiting(void);

void plant_prepare_processor(void);
int plant_forge(void);

/* Those of functions.S. */
void plant_in_prologue(void);
void plant_probed(void);
void plant_forged_offset(void);
void plant_forged_end(void);
void plant_forged_leap(void);
void plant_leaped(void);

/* Bytes from the first of a function to the place in it that its name says. */
extern const unsigned int plant_probed_site;
extern const unsigned int plant_forged_offset_behind;
extern const unsigned int plant_forged_end_behind;
extern const unsigned int plant_forged_leap_behind;

#endif
#endif
