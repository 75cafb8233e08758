//! A kernel of a few lines that answers as kbuild does: headers and a source to make modules of.
#![allow(dead_code, reason = "each test takes its own part")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Prints, among other things, the command that compiles a file, as `scripts/Makefile.build` does when it is asked for what it
/// would do. Files below `drivers` are parts of the module `small`.
const SOURCE: &str = r#"VERSION = 6
PATCHLEVEL = 1
SUBLEVEL = 170
%.s: %.c
	set -e;  echo '  $(CC) -S -o $(M)/$@ $(M)/$<';  trap 'rm -f $@' INT; $(CC) -Wp,-MMD,$(M)/unit.d -nostdinc \
	-I$(M)/include -I./include $(if $(filter drivers/%,$*),-DMODULE -DKBUILD_MODNAME='"small"',-DKBUILD_MODNAME='"unit"') \
	-DKBUILD_MODFILE='"$(M)/$*"' $(KCFLAGS) -O2 -fno-PIE -fno-asynchronous-unwind-tables -fcf-protection=none \
	-mcmodel=kernel -fverbose-asm -S -o $(M)/$@ $(M)/$<; rm -f x
%.i: %.c
	cp $< $@
"#;

/// Makes a module of what the folder `M` says.
const HEADERS: &str = r#"
src := $(M)
include $(M)/Kbuild
name := $(obj-m:.o=)
modules: $(M)/$(name).ko
	@echo 'WARNING: modpost: "state" [unit.ko] undefined!' >&2
	@echo 'vmlinux.o: warning: objtool: something to read' >&2
$(M)/$(name).ko: $(addprefix $(M)/,$($(name)-y))
	$(LD) -r --build-id=sha1 -o $@ $^
$(M)/%.o: $(M)/%.c
	$(CC) -I$(CURDIR)/include -DKBUILD_MODNAME='"$(name)"' -O2 -fno-PIE -fno-asynchronous-unwind-tables \
	-fcf-protection=none -mcmodel=kernel -g $(KCFLAGS) $(ccflags-y) -c -o $@ $<
"#;

const MODULE_H: &str = r#"#include <generated/utsrelease.h>
#define THIS_MODULE 0
#define __init __attribute__((section(".init.text")))
#define __exit
#define __module_get(x)
#define module_init(f) int init_module(void) __attribute__((alias(#f)));
#define module_exit(f) void cleanup_module(void) __attribute__((alias(#f)));
#define MODULE_LICENSE(x)
#define MODULE_DESCRIPTION(x)
#define MODULE_INFO(x, y)
#define MODULE_IMPORT_NS(x) const char imported_##x[] = #x
static const char vermagic[] __attribute__((used, section(".modinfo"))) = "vermagic=" UTS_RELEASE " SMP ";
struct module { char before[24], name[56]; };
struct module __this_module __attribute__((section(".gnu.linkonce.this_module"))) = { .name = KBUILD_MODNAME };
"#;

/// The folder of a kernel.
#[derive(Debug)]
pub(crate) struct SmallKernel(tempfile::TempDir);

impl SmallKernel {
    /// A kernel whose `uname -r` would print `release`, without any file to compile.
    pub(crate) fn new(release: &str) -> Self {
        let kernel = Self(tempfile::tempdir().unwrap());
        kernel.put("source/Makefile", SOURCE);
        kernel.put("headers/Makefile", HEADERS);
        kernel.put("headers/Module.symvers", "0x1\texported\tvmlinux\tEXPORT_SYMBOL\tSPACE\n");
        kernel.put("headers/include/linux/init.h", "");
        kernel.put("headers/include/linux/module.h", MODULE_H);
        kernel.put("headers/include/config/auto.conf", "CONFIG_CC_VERSION_TEXT=\"gcc (Debian) 1\"\n");
        kernel.put("headers/include/generated/utsrelease.h", &format!("#define UTS_RELEASE \"{release}\"\n"));
        let version = "#define LINUX_VERSION_CODE 1\n#define LINUX_VERSION_MAJOR 6\n\
            #define LINUX_VERSION_PATCHLEVEL 1\n#define LINUX_VERSION_SUBLEVEL 170\n";
        kernel.put("headers/include/generated/uapi/linux/version.h", version);
        kernel
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn headers(&self) -> PathBuf {
        self.path("headers")
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// Writes a file.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes the file `fix.patch`: in each file of the source, `from` becomes `to`.
    pub(crate) fn fix(&self, changes: &[(&str, &str, &str)]) -> PathBuf {
        let mut text = String::new();
        for (path, from, to) in changes {
            let original = fs::read_to_string(self.source().join(path)).unwrap();
            assert!(original.contains(from), "{from:?} is not in {path}");
            self.put("fixed", &original.replace(from, to));
            let mut diff = Command::new("diff");
            diff.arg("-u").args(["--label", &format!("a/{path}"), "--label", &format!("b/{path}")]);
            diff.arg(self.source().join(path)).arg(self.path("fixed"));
            text.push_str(std::str::from_utf8(&diff.output().unwrap().stdout).unwrap());
        }
        self.put("fix.patch", &text);
        self.path("fix.patch")
    }

    /// Makes the module `small` of a file of the source, as the kernel's package would have it.
    pub(crate) fn stock(&self, unit: &str) -> PathBuf {
        let kbuild = "obj-m := small.o\nsmall-y := main.o unit.o\nccflags-y := -I$(M)/../source/include\n";
        self.put("stock/Kbuild", kbuild);
        self.put("stock/main.c", "#include <linux/module.h>\n");
        fs::copy(self.source().join(unit), self.path("stock/unit.c")).unwrap();
        let mut make = Command::new("make");
        make.arg("-C").arg(self.headers()).arg(format!("M={}", self.path("stock").display()));
        let done = make.args(["CC=gcc", "modules"]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self.path("stock/small.ko")
    }
}

/// Whether a file holds a text.
pub(crate) fn holds(file: &[u8], text: &str) -> bool {
    file.windows(text.len()).any(|bytes| bytes == text.as_bytes())
}
