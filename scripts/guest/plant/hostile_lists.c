// SPDX-License-Identifier: GPL-2.0
/* What the kernel says of a module and of tasks, which is another thing for a moment. */

#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/task_stack.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/wait.h>

#include <asm/switch_to.h>

#include "hostile.h"

/* What /sys/module/NAME/sections shows; no header has it (kernel/module/sysfs.c of 6.1 and 6.12). */
struct section {
	struct bin_attribute file;
	unsigned long address;
};

struct sections {
	struct attribute_group group;
	unsigned int count;
	struct section each[];
};

#define LIE 0x10

static struct section *text;

static int begin_sections(void)
{
	struct module *(*module_at)(unsigned long) = hostile_symbol("__module_address");
	unsigned long function = (unsigned long)hostile_symbol(NEW);
	struct sections *sections;
	struct module *module;
	unsigned int i;

	if (!module_at || !function)
		return -ENOENT;
	preempt_disable();
	module = module_at(function);
	preempt_enable();
	if (!module)
		return -ENOENT;
	sections = (struct sections *)module->sect_attrs;
	for (i = 0; i < sections->count; i++) {
		text = &sections->each[i];
		if (!strcmp(text->file.attr.name, ".text"))
			return 0;
	}
	return -ENOENT;
}

static void sections_on(unsigned long round)
{
	WRITE_ONCE(text->address, text->address + LIE);
}

static void sections_off(void)
{
	WRITE_ONCE(text->address, text->address - LIE);
}

static void nothing(void)
{
}

const struct attack hostile_sections = { "sections", begin_sections, sections_on, sections_off, nothing };

/* Threads that sleep until they are to stop. Three, so that what the middle one is linked with is ours, too. */
#define VICTIMS 3
static struct task_struct *victims[VICTIMS];
static DECLARE_WAIT_QUEUE_HEAD(asleep);
/* Whether they sleep, and can be lied about. */
static bool may_lie;
/* How often they were woken, all of them, and each. */
static unsigned long turn, turns[VICTIMS];

static int victim_thread(void *own)
{
	unsigned long *seen = own;

	while (!kthread_should_stop()) {
		WRITE_ONCE(*seen, READ_ONCE(turn));
		wait_event_idle(asleep, kthread_should_stop() || READ_ONCE(turn) != *seen);
	}
	return 0;
}

static void end_victims(void)
{
	int i;

	for (i = 0; i < VICTIMS; i++) {
		if (victims[i])
			kthread_stop(victims[i]);
		victims[i] = NULL;
	}
}

/* Waits until all of them have gone to sleep in this turn. */
static bool are_asleep(void)
{
	int i, ms;

	for (ms = 0; ms < 1000; ms++) {
		bool all = true;

		for (i = 0; i < VICTIMS; i++) {
			const struct task_struct *task = victims[i];

			all &= READ_ONCE(turns[i]) == turn && READ_ONCE(task->__state) == TASK_IDLE &&
			       !READ_ONCE(task->on_cpu);
		}
		if (all)
			return true;
		usleep_range(100, 1000);
	}
	return false;
}

/* They have run, and whoever knew their stacks does not know them any more. */
static void wake_victims(void)
{
	WRITE_ONCE(turn, turn + 1);
	wake_up_all(&asleep);
	/* Should one never sleep again, the lie would end it. */
	may_lie = are_asleep();
}

static int begin_victims(void)
{
	int i;

	for (i = 0; i < VICTIMS; i++) {
		struct task_struct *task = kthread_run(victim_thread, &turns[i], "lucos_victim");

		if (IS_ERR(task)) {
			end_victims();
			return PTR_ERR(task);
		}
		victims[i] = task;
	}
	may_lie = are_asleep();
	if (may_lie)
		return 0;
	end_victims();
	return -ETIMEDOUT;
}

/* What the middle one had. */
static unsigned long stack_pointer, return_address;
static char name[TASK_COMM_LEN];

static struct inactive_task_frame *frame(void)
{
	return (struct inactive_task_frame *)stack_pointer;
}

/* It sleeps, so that nobody in the guest needs what is changed. */
static void stack_on(unsigned long round)
{
	struct task_struct *task = victims[1];

	if (!may_lie)
		return;
	stack_pointer = task->thread.sp;
	return_address = frame()->ret_addr;
	memcpy(name, task->comm, sizeof(name));
	memset(task->comm, 0xff, sizeof(task->comm));
	switch (round % 4) {
	case 0:
		WRITE_ONCE(task->thread.sp, stack_pointer + sizeof(long));
		break;
	case 1:
		WRITE_ONCE(task->thread.sp, 0xdead000000000000);
		break;
	case 2:
		WRITE_ONCE(task->thread.sp, victims[0]->thread.sp);
		break;
	case 3:
		WRITE_ONCE(frame()->ret_addr, return_address + 1);
		break;
	}
}

static void stack_off(void)
{
	struct task_struct *task = victims[1];

	if (!may_lie)
		return;
	WRITE_ONCE(frame()->ret_addr, return_address);
	WRITE_ONCE(task->thread.sp, stack_pointer);
	memcpy(task->comm, name, sizeof(name));
}

const struct attack hostile_stack = { "stack", begin_victims, stack_on, stack_off, end_victims, wake_victims };

static int begin_tasks(void)
{
	bool neighbours;
	int error = begin_victims();

	if (error)
		return error;
	neighbours = victims[0]->tasks.next == &victims[1]->tasks && victims[1]->tasks.next == &victims[2]->tasks;
	if (neighbours)
		return 0;
	/* Others were made at the same time. */
	end_victims();
	return -EAGAIN;
}

/* The list goes round in a circle of two, and never comes to its end. Whoever walks on it in the guest goes on when that is over. */
static void tasks_on(unsigned long round)
{
	WRITE_ONCE(victims[1]->tasks.next, &victims[0]->tasks);
}

static void tasks_off(void)
{
	WRITE_ONCE(victims[1]->tasks.next, &victims[2]->tasks);
}

static int short_thread(void *unused)
{
	return 0;
}

/* The list has changed, and whoever knew it does not know it any more. */
static void make_a_task(void)
{
	struct task_struct *task = kthread_create(short_thread, NULL, "lucos_short");

	if (!IS_ERR(task))
		kthread_stop(task);
}

const struct attack hostile_tasks = { "tasks", begin_tasks, tasks_on, tasks_off, end_victims, make_a_task };
