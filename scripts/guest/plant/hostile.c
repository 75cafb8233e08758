// SPDX-License-Identifier: GPL-2.0
/*
 * A guest that lies to whoever patches it from outside: while it is looked at, another processor changes what is seen, and changes
 * it back.
 *
 * The name of an attack, written to /sys/module/lucos_hostile/parameters/attack, begins it; "stop" ends it, and leaves everything as
 * it was. Nothing may run the function that is patched (version_proc_show) in between. `rounds` says how often it was done.
 */

#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/preempt.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/string.h>

#include "hostile.h"

/* The longest that a lie, and the truth, last, in microseconds: each is met about as often. */
#define LIE_US 4000
#define TRUTH_US 2000

static const struct attack *const attacks[] = {
	&hostile_text,	   &hostile_page,  &hostile_new_text, &hostile_new_page,
	&hostile_sections, &hostile_stack, &hostile_tasks,
};

static unsigned long rounds;
module_param(rounds, ulong, 0444);

/* The attack that goes on, and the thread that does it. */
static const struct attack *going_on;
static struct task_struct *attacker;

typedef unsigned long (*lookup_t)(const char *name);
static lookup_t lookup;

void *hostile_symbol(const char *name)
{
	return (void *)lookup(name);
}

/* The kernel exports no table of its symbols; a probe finds any function, and so the one that reads the table. */
static int find_lookup(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	int error = register_kprobe(&probe);

	if (error)
		return error;
	lookup = (lookup_t)probe.addr;
	unregister_kprobe(&probe);
	return 0;
}

static unsigned int below(unsigned int limit)
{
	u32 random;

	get_random_bytes(&random, sizeof(random));
	return random % limit;
}

static int attack_thread(void *unused)
{
	while (!kthread_should_stop()) {
		unsigned int lie = below(LIE_US), truth = below(TRUTH_US);

		preempt_disable();
		going_on->on(rounds);
		udelay(lie);
		going_on->off();
		preempt_enable();
		rounds++;
		usleep_range(truth, truth + 50);
		if (going_on->between)
			going_on->between();
	}
	return 0;
}

static void stop(void)
{
	if (!going_on)
		return;
	kthread_stop(attacker);
	going_on->end();
	going_on = NULL;
}

static int begin(const struct attack *attack)
{
	int error;

	if (going_on)
		return -EBUSY;
	error = attack->begin();
	if (error)
		return error;
	attacker = kthread_create(attack_thread, NULL, "lucos_hostile");
	if (IS_ERR(attacker)) {
		attack->end();
		return PTR_ERR(attacker);
	}
	rounds = 0;
	going_on = attack;
	kthread_bind(attacker, cpumask_last(cpu_online_mask));
	wake_up_process(attacker);
	return 0;
}

static int set_attack(const char *word, const struct kernel_param *unused)
{
	size_t i;

	if (sysfs_streq(word, "stop")) {
		stop();
		return 0;
	}
	for (i = 0; i < ARRAY_SIZE(attacks); i++) {
		if (sysfs_streq(word, attacks[i]->name))
			return begin(attacks[i]);
	}
	return -EINVAL;
}

static const struct kernel_param_ops operations = { .set = set_attack };
module_param_cb(attack, &operations, NULL, 0200);

static int __init hostile_init(void)
{
	return find_lookup();
}
module_init(hostile_init);

static void __exit hostile_exit(void)
{
	stop();
}
module_exit(hostile_exit);

MODULE_DESCRIPTION("Changes what is seen of a guest from outside");
MODULE_LICENSE("GPL");
