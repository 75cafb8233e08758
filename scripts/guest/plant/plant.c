// SPDX-License-Identifier: GPL-2.0
/*
 * Puts tasks and processors of a guest into known places, for tests of who looks at their stacks from outside.
 *
 * The name of a place, written to /proc/lucos_plant, sends them there; the write ends when they have arrived. "release"
 * lets them go, and so does a timer, so that nothing hangs for ever. There is no way to remove the module: its
 * functions are on stacks.
 */

#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/string.h>
#include <linux/timer.h>
#include <linux/uaccess.h>

#include "plant.h"

/* After this many seconds everything is let go of. */
#define LIMIT_S 120
/* The longest that arriving and leaving may take: the optimizer of kprobes waits for every task of the guest. */
#define MOVE_MS 20000
#define POLL_MS 10
/* Behind the counting there are a few instructions to go, and a thread that shares its processor waits for its turn. */
#define SETTLE_MS 100

int plant_held;
atomic_t plant_inside = ATOMIC_INIT(0);
DECLARE_WAIT_QUEUE_HEAD(plant_freed);

static const struct plant_place places[] = {
	{ "irq", 1, plant_begin_irq },
	{ "softirq", 1, plant_begin_softirq },
	{ "nmi", 1, plant_begin_nmi, plant_end_nmi },
	{ "prologue", 2, plant_begin_prologue },
	{ "module", 1, plant_begin_module },
	{ "exiting", 2, plant_begin_exiting, plant_end_exiting },
	{ "kprobe", 1, plant_begin_kprobe, plant_end_probe },
	{ "optprobe", 1, plant_begin_optprobe, plant_end_probe },
	{ "forged-offset", 1, plant_begin_forged_offset },
	{ "forged-end", 1, plant_begin_forged_end },
	{ "forged-leap", 1, plant_begin_forged_leap },
};

/* The place that is taken. */
static const struct plant_place *taken;
static DEFINE_MUTEX(lock);
static struct timer_list limit;

unsigned int plant_cpu(void)
{
	return cpumask_last(cpu_online_mask);
}

static void let_go(struct timer_list *unused)
{
	WRITE_ONCE(plant_held, 0);
	wake_up_all(&plant_freed);
}

/* Waits until as many as `count` are inside, or as few as none. */
static int wait_inside(int count)
{
	int ms;

	for (ms = 0; ms < MOVE_MS; ms += POLL_MS) {
		int inside = atomic_read(&plant_inside);

		if (count ? inside >= count : !inside)
			return 0;
		msleep(POLL_MS);
	}
	return -ETIMEDOUT;
}

static int release(void)
{
	int error;

	if (!taken)
		return 0;
	let_go(NULL);
	del_timer_sync(&limit);
	error = wait_inside(0);
	if (taken->end)
		taken->end();
	taken = NULL;
	return error;
}

static int take(const struct plant_place *place)
{
	int error;

	if (taken)
		return -EBUSY;
	taken = place;
	WRITE_ONCE(plant_held, 1);
	/* Not on the processor that is held, where no timer runs. */
	limit.expires = jiffies + LIMIT_S * HZ;
	add_timer_on(&limit, cpumask_first(cpu_online_mask));
	error = place->begin();
	if (!error)
		error = wait_inside(place->holds);
	if (error)
		release();
	else
		msleep(SETTLE_MS);
	return error;
}

static int obey(const char *word)
{
	size_t i;

	if (sysfs_streq(word, "release"))
		return release();
	for (i = 0; i < ARRAY_SIZE(places); i++) {
		if (sysfs_streq(word, places[i].name))
			return take(&places[i]);
	}
	return -EINVAL;
}

static ssize_t plant_write(struct file *file, const char __user *from, size_t len, loff_t *at)
{
	char word[32] = {};
	int error;

	if (len >= sizeof(word))
		return -EINVAL;
	if (copy_from_user(word, from, len))
		return -EFAULT;
	mutex_lock(&lock);
	error = obey(word);
	mutex_unlock(&lock);
	return error ? error : len;
}

static const struct proc_ops operations = { .proc_write = plant_write };

static int __init plant_init(void)
{
	int error = plant_forge();

	if (error)
		return error;
	timer_setup(&limit, let_go, 0);
	plant_prepare_processor();
	return proc_create("lucos_plant", 0200, NULL, &operations) ? 0 : -ENOMEM;
}
module_init(plant_init);

MODULE_DESCRIPTION("Puts tasks and processors into known places");
/* Half of the functions that it needs are exported to this licence only. */
MODULE_LICENSE("GPL");
