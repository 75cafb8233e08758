// SPDX-License-Identifier: GPL-2.0
/* A module that does nothing: to be loaded and unloaded, to be found where it says that it is, and to be patched. */

#include <linux/errno.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
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
}
module_exit(trial_exit);

MODULE_DESCRIPTION("Does nothing");
MODULE_LICENSE("GPL");
