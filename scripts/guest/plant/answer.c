// SPDX-License-Identifier: GPL-2.0
/* A new version of a function of lucos_trial (trial.c), which refers to something else that is in there. */

#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sysfs.h>

/* Nobody exports it, and whoever loads this says where it is. */
extern const unsigned char trial_bytes[] __attribute__((weak));

int lucos_trial_answer(char *buffer, const struct kernel_param *param);

int lucos_trial_answer(char *buffer, const struct kernel_param *param)
{
	return sysfs_emit(buffer, "patched: %02x\n", trial_bytes[0]);
}

static int __init answer_init(void)
{
	__module_get(THIS_MODULE);
	return 0;
}
module_init(answer_init);

static void __exit answer_exit(void)
{
}
module_exit(answer_exit);

MODULE_DESCRIPTION("A new version of a function of lucos_trial");
MODULE_LICENSE("GPL");
MODULE_INFO(lucos, "1");
