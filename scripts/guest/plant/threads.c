// SPDX-License-Identifier: GPL-2.0
/* Threads that sleep in functions of the module, or are switched out in the middle of one. */

#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/sched.h>

#include "plant.h"

int plant_threads(int (*run)(void *), const char *name, int count)
{
	int i;

	for (i = 0; i < count; i++) {
		struct task_struct *thread = kthread_create(run, NULL, "%s", name);

		if (IS_ERR(thread))
			return PTR_ERR(thread);
		kthread_bind(thread, plant_cpu());
		wake_up_process(thread);
	}
	return 0;
}

noinline void plant_sleep(void)
{
	atomic_inc(&plant_inside);
	wait_event_idle(plant_freed, !READ_ONCE(plant_held));
	atomic_dec(&plant_inside);
}

/* The barriers keep calls from becoming jumps: each function shall have a frame. */
static noinline void plant_inner(void)
{
	plant_sleep();
	barrier();
}

static noinline void plant_outer(void)
{
	plant_inner();
	barrier();
}

static int plant_sleeper(void *unused)
{
	plant_outer();
	return 0;
}

static int plant_in_turns(void *unused)
{
	atomic_inc(&plant_inside);
	plant_in_prologue();
	atomic_dec(&plant_inside);
	return 0;
}

static int plant_offset_sleeper(void *unused)
{
	plant_forged_offset();
	return 0;
}

static int plant_end_sleeper(void *unused)
{
	plant_forged_end();
	return 0;
}

static int plant_leap_sleeper(void *unused)
{
	plant_leaped();
	return 0;
}

int plant_begin_module(void)
{
	return plant_threads(plant_sleeper, "plant_module", 1);
}

int plant_begin_prologue(void)
{
	return plant_threads(plant_in_turns, "plant_prologue", 2);
}

int plant_begin_forged_offset(void)
{
	return plant_threads(plant_offset_sleeper, "plant_forged", 1);
}

int plant_begin_forged_end(void)
{
	return plant_threads(plant_end_sleeper, "plant_forged", 1);
}

int plant_begin_forged_leap(void)
{
	return plant_threads(plant_leap_sleeper, "plant_forged", 1);
}
