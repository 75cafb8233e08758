// SPDX-License-Identifier: GPL-2.0
/*
 * A module that does nothing: to be loaded and unloaded, to be found where it says that it is, and to be patched. It holds another
 * module, if that is written to /sys/module/lucos_trial/parameters/hold, until something else is.
 */

#include <linux/errno.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/rculist.h>
#include <linux/string.h>
#include <linux/sysfs.h>

/* Some bytes that are not all the same, so that a copy with a hole in it does not load. */
static unsigned char trial_bytes[200000] = { [0 ... 99999] = 0x5a, [100000 ... 199999] = 0xa5 };

/*
 * What /sys/module/lucos_trial/parameters/answer has. It begins with instructions that loading fills nothing into, which is where a
 * jump can be.
 */
static noinline int trial_answer(char *buffer, const struct kernel_param *param)
{
	if (!buffer || !param)
		return -EINVAL;
	return sysfs_emit(buffer, "as it was built\n");
}

static const struct kernel_param_ops trial_ops = { .get = trial_answer };
module_param_cb(answer, &trial_ops, NULL, 0444);

static struct module *trial_held;

static int trial_hold(const char *text, const struct kernel_param *param)
{
	struct module *module, *found = NULL;

	rcu_read_lock();
	/* From one to the next; the head of the list is none, and has no name that anybody writes here. */
	list_for_each_entry_rcu(module, &THIS_MODULE->list, list)
		if (sysfs_streq(module->name, text) && try_module_get(module)) {
			found = module;
			break;
		}
	rcu_read_unlock();
	module_put(trial_held);
	trial_held = found;
	return 0;
}

static const struct kernel_param_ops trial_hold_ops = { .set = trial_hold };
module_param_cb(hold, &trial_hold_ops, NULL, 0200);

static int __init trial_init(void)
{
	size_t i, sum = 0;

	for (i = 0; i < sizeof(trial_bytes); i++)
		sum += trial_bytes[i];
	return sum == 100000 * (0x5a + 0xa5) ? 0 : -EILSEQ;
}
module_init(trial_init);

static void __exit trial_exit(void)
{
	module_put(trial_held);
}
module_exit(trial_exit);

MODULE_DESCRIPTION("Does nothing");
MODULE_LICENSE("GPL");
