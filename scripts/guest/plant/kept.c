// SPDX-License-Identifier: GPL-2.0
/* A new version of a function of the kernel, which leaves the address of another one where others may find it. */

#include <linux/init.h>
#include <linux/module.h>
#include <linux/ptrace.h>

long lucos_kept_getppid(const struct pt_regs *regs);

/* Nobody calls it. */
static noinline long kept_callback(long number)
{
	return number + 1;
}

static long (*volatile kept)(long number);

/* For __x64_sys_getppid: another number than any process has. */
long lucos_kept_getppid(const struct pt_regs *regs)
{
	kept = kept_callback;
	return 0x6c75636f;
}

static int __init kept_init(void)
{
	__module_get(THIS_MODULE);
	return 0;
}
module_init(kept_init);

static void __exit kept_exit(void)
{
}
module_exit(kept_exit);

MODULE_DESCRIPTION("A new version of a function that leaves an address");
MODULE_LICENSE("GPL");
MODULE_INFO(lucos, "1");
