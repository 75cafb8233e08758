// SPDX-License-Identifier: GPL-2.0
/* A new version of a function of the kernel, in a module that does not want to be loaded. */

#include <linux/errno.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/ptrace.h>

long lucos_unwilling_getppid(const struct pt_regs *regs);

/* For __x64_sys_getppid: another number than any process has. */
long lucos_unwilling_getppid(const struct pt_regs *regs)
{
	return 0x6c75636f;
}

static int __init unwilling_init(void)
{
	return -ENODEV;
}
module_init(unwilling_init);

static void __exit unwilling_exit(void)
{
}
module_exit(unwilling_exit);

MODULE_DESCRIPTION("A new version of a function that is never loaded");
MODULE_LICENSE("GPL");
MODULE_INFO(lucos, "1");
