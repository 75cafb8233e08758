// SPDX-License-Identifier: GPL-2.0
/* A new version of a function of the kernel, in a module that takes its time. */

#include <linux/delay.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/ptrace.h>

long lucos_late_getppid(const struct pt_regs *regs);

/* For __x64_sys_getppid: another number than any process has. */
long lucos_late_getppid(const struct pt_regs *regs)
{
	return 0x6c75636f;
}

static int __init late_init(void)
{
	msleep(4000);
	__module_get(THIS_MODULE);
	return 0;
}
module_init(late_init);

static void __exit late_exit(void)
{
}
module_exit(late_exit);

MODULE_DESCRIPTION("A new version of a function that is loaded late");
MODULE_LICENSE("GPL");
MODULE_INFO(lucos, "1");
