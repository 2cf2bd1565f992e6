"""The GPU memory library in programs of all kinds: it is loaded with every one of a container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fakes.cuda import VARIABLE, FakeCuda
from fakes.gpu import WORLD
from fakes.gpu_conversation import LIBRARY

WARNINGS = ("-Wall", "-Wextra", "-Werror")
LISTING = r"""
for fd in /proc/self/fd/*; do echo "${fd##*/}"; done
ls /proc/self/task | wc -l
grep -c thaw-gpu /proc/self/maps || true
"""


def built(folder: Path, name: str, source: str, *options: str, compiler: str = "cc") -> Path:
    """A program, or a library with -shared."""
    path = folder / f"{name}.c"
    path.write_text(source)
    target = folder / name
    subprocess.run([compiler, *WARNINGS, "-O1", "-o", target, path, *options], check=True)
    return target


def run(*command: str | Path, preload: str | Path | None = LIBRARY, **more: str) -> str:
    """What a program says under the library; it ends well, and without a word on stderr."""
    env = {name: text for name, text in os.environ.items() if name not in ("LD_PRELOAD", VARIABLE)}
    env |= more
    if preload is not None:
        env["LD_PRELOAD"] = str(preload)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_needs_no_library_and_four_symbols_that_may_lack() -> None:
    dynamic = run("readelf", "-dW", LIBRARY, preload=None)
    assert "NEEDED" not in dynamic
    assert "BIND_NOW" not in dynamic
    symbols = run("nm", "-D", "--undefined-only", LIBRARY, preload=None)
    lines = [line.split() for line in symbols.splitlines()]
    assert {kind for kind, _ in lines} <= {"w", "v"}
    names = {"_dl_debug_addr", "_r_debug", "dl_iterate_phdr", "environ"}
    assert {name for _, name in lines} == names


def test_it_shows_only_what_it_takes_over() -> None:
    lines = run("nm", "-D", "--defined-only", LIBRARY, preload=None).splitlines()
    names = {line.split()[-1] for line in lines}
    assert "dlsym" in names
    assert {"cuMemAlloc_v2", "cuGetProcAddress_v2", "cuMemcpyHtoD_v2_ptds"} <= names
    assert all(re.fullmatch(r"cu[A-Z]\w+", name) for name in names - {"dlsym"})


def test_what_the_real_driver_calls_by_these_names_is_what_they_are() -> None:
    """Those without a version are of the old kind where there is a newer one: see cuda.h."""
    lines = run("nm", "-D", "--defined-only", LIBRARY, preload=None).splitlines()
    names = {line.split()[-1] for line in lines}
    old = {"cuMemAlloc", "cuMemFree", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuMemsetD8", "cuCtxCreate"}
    assert not old & names
    twins = {name for name in names if name.endswith(("_ptsz", "_ptds"))}
    assert {name.rpartition("_pt")[0] for name in twins} <= names


@pytest.mark.parametrize(
    "command",
    [
        ["env", "sh", "-c", LISTING],
        ["sh", "-c", f"cat </dev/null | {{ {LISTING} }} | cat"],
        ["setsid", "-w", "nice", "sh", "-c", LISTING],
    ],
)
def test_wrappers_and_pipelines_are_as_without_it(command: list[str]) -> None:
    without, with_it = run(*command, preload=None), run(*command)
    assert with_it.split()[:-1] == without.split()[:-1]
    # In memory it is; there is no marker among it.
    assert "memfd" not in run("cat", "/proc/self/maps")


NEXT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
pid_t getppid(void) {
    pid_t (*next)(void) = (pid_t (*)(void))dlsym(RTLD_NEXT, "getppid");
    return (void *)next == (void *)getppid ? 0 : next() + 1000000;
}
int cuMemFree_v2(unsigned long long at) {
    int (*next)(unsigned long long) = (int (*)(unsigned long long))dlsym(RTLD_NEXT, "cuMemFree_v2");
    return next == NULL ? -1 : next == cuMemFree_v2 ? -2 : (int)at;
}
"""
ASKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
    void *self = dlopen(NULL, RTLD_NOW);
    printf("%d %d %d %d\n", getppid() > 1000000, dlsym(RTLD_DEFAULT, "puts") == (void *)puts,
           dlsym(self, "printf") != NULL, dlsym(RTLD_DEFAULT, "no such") == NULL);
    printf("%d %d\n", dlsym(RTLD_DEFAULT, "cuMemAlloc_v2") == NULL,
           dlsym(RTLD_DEFAULT, "cuLaunchKernel") == NULL);
    printf("%d\n", dlerror() != NULL);
    return 0;
}
"""


def test_dlsym_is_still_the_real_one(tmp_path: Path) -> None:
    """RTLD_NEXT is told from where it was called; what is nowhere is not found."""
    other = built(tmp_path, "other.so", NEXT, "-shared", "-fPIC")
    asks = built(tmp_path, "asks", ASKS)
    for preload in (f"{LIBRARY}:{other}", f"{other}:{LIBRARY}"):
        said = run(asks, preload=preload).splitlines()
        assert said[0] == "1 1 1 1"
    assert run(asks, preload=f"{LIBRARY}").splitlines()[1] == "1 1"


PLUGIN = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
int cublasAnswer(void);
int linked(void);
int linked(void) { return cublasAnswer(); }
int looked_up(void);
int looked_up(void) {
    int (*answer)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "cublasAnswer");
    return answer != NULL ? answer() : 0;
}
"""
OPENS = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **names) {
    void *plugin = count > 1 ? dlopen(names[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    const char *functions[] = {"linked", "looked_up"};
    for (int n = 0; n < 2 && plugin != NULL; n++)
        printf("%d ", ((int (*)(void))dlsym(plugin, functions[n]))());
    return 0;
}
"""


def test_a_plugin_finds_what_it_needs_itself(tmp_path: Path) -> None:
    """RTLD_DEFAULT is what is loaded for all, and what the one that asks was loaded with."""
    answers = "int cublasAnswer(void);\nint cublasAnswer(void) { return 42; }\n"
    needed = built(tmp_path, "libanswer.so", answers, "-shared", "-fPIC")
    plugin = built(
        tmp_path, "plugin.so", PLUGIN, "-shared", "-fPIC", str(needed), f"-Wl,-rpath,{tmp_path}"
    )
    opens = built(tmp_path, "opens", OPENS)
    assert run(opens, plugin) == run(opens, plugin, preload=None) == "42 42 "


ITERATES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stddef.h>
typedef int iterate_function(int (*look)(struct dl_phdr_info *, size_t, void *), void *data);
static iterate_function *next;
static void find(void) { next = (iterate_function *)dlsym(RTLD_NEXT, "dl_iterate_phdr"); }
#ifdef EARLY
__attribute__((constructor)) static void early(void) { find(); }
#endif
int dl_iterate_phdr(int (*look)(struct dl_phdr_info *, size_t, void *), void *data) {
#ifndef EARLY
    find();
#endif
    return next(look, data);
}
"""
COUNTS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
static int count(struct dl_phdr_info *info, size_t size, void *seen) {
    (void)info, (void)size;
    ++*(int *)seen;
    return 0;
}
int main(void) {
    int seen = 0, result = dl_iterate_phdr(count, &seen);
    printf("%d %d %d\n", result, seen > 2, dlsym(RTLD_DEFAULT, "puts") == (void *)puts);
    return 0;
}
"""


@pytest.mark.parametrize("options", [(), ("-DEARLY",)])
@pytest.mark.parametrize("compiler", ["cc", "musl-gcc"])
def test_a_program_with_a_dl_iterate_phdr_of_its_own(
    tmp_path: Path, options: tuple[str, ...], compiler: str
) -> None:
    """Which may be called only once it has found the real one by dlsym."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    flags = (*options, "-rdynamic")
    program = built(tmp_path, "own", ITERATES + COUNTS, *flags, compiler=compiler)
    assert run(program) == "0 1 1\n"
    library = built(tmp_path, "own.so", ITERATES, *options, "-shared", "-fPIC", compiler=compiler)
    counts = built(tmp_path, "counts", COUNTS, compiler=compiler)
    for preload in (f"{LIBRARY}:{library}", f"{library}:{LIBRARY}"):
        assert run(counts, preload=preload) == "0 1 1\n"


FINDS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **names) {
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    int (*get)(const char *, void **, int, unsigned long long, int *) =
        (int (*)(const char *, void **, int, unsigned long long, int *))dlsym(
            library, "cuGetProcAddress_v2");
    (void)count;
    for (char **name = names + 1; *name != NULL; name += 2) {
        Dl_info info = {0};
        void *found = dlsym(library, *name);
        if (found == NULL || dladdr(found, &info) == 0)
            info.dli_fname = "nowhere", info.dli_sname = "";
        printf("%s %s ", info.dli_fname, info.dli_sname);
        for (int way = 0; way < 4; way++) {
            int status = 0;
            found = NULL;
            info.dli_sname = "none";
            if (get(name[1], &found, way & 1 ? 13000 : 11000, way & 2, &status) == 0 && found)
                dladdr(found, &info);
            printf("%s ", found ? info.dli_sname : "none");
        }
        printf("\n");
    }
    return 0;
}
"""


def test_every_way_to_a_function_leads_to_the_same_one(tmp_path: Path) -> None:
    """The variant that the driver would give, by version and by kind of default stream."""
    cuda = FakeCuda(tmp_path)
    finds = built(tmp_path, "finds", FINDS)
    names = ["cuMemAlloc_v2", "cuMemAlloc", "cuMemcpyHtoD_v2", "cuMemcpyHtoD"]
    names += ["cuLaunchKernel", "cuLaunchKernel", "cuMemCreate", "cuMemCreate"]
    names += ["cuGraphInstantiateWithFlags", "cuGraphInstantiate"]
    names += ["cuGetProcAddress_v2", "cuGetProcAddress", "cuInit", "cuInit"]
    world = {"LD_LIBRARY_PATH": str(tmp_path)}
    bare = [line.split() for line in run(finds, *names, preload=None, **world).splitlines()]
    found = [line.split() for line in run(finds, *names, **world).splitlines()]
    assert [line[1:] for line in found] == [line[1:] for line in bare]
    assert {line[0] for line in bare} == {cuda.library}
    assert {line[0] for line in found[:-1]} == {LIBRARY}
    assert found[-1][0] == cuda.library
    assert bare[1][4] == "cuMemcpyHtoD_v2_ptds"
    out = [
        line.split() for line in run(finds, *names, THAW_GPU_MEMORY="driver", **world).splitlines()
    ]
    assert out == bare


def test_a_name_that_means_another_function_from_some_version_on(tmp_path: Path) -> None:
    FakeCuda(tmp_path)
    finds = built(tmp_path, "files", FINDS.replace("? info.dli_sname", "? info.dli_fname"))
    names = ["cuGraphInstantiateWithFlags", "cuGraphInstantiate"]
    library, _, *files = run(finds, *names, LD_LIBRARY_PATH=str(tmp_path)).split()
    assert [library, *files] == [LIBRARY] * 5


def test_a_function_that_is_newer_than_the_library_is_the_drivers(tmp_path: Path) -> None:
    """It takes other arguments; who asks for that of an older version gets ours."""
    FakeCuda(tmp_path, version=99000)
    finds = built(tmp_path, "newer", FINDS.replace("13000", "99000"))
    world = {"LD_LIBRARY_PATH": str(tmp_path), WORLD: str(tmp_path)}
    library, *found = run(finds, "cuLaunchKernel", "cuLaunchKernel", **world).split()
    assert library == LIBRARY
    newer = "cuLaunchKernel_v2"
    assert found == ["cuLaunchKernel", "cuLaunchKernel", newer, "cuLaunchKernel_ptsz", newer]


LACKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    const char *names[] = {"cuMemCreate", "cuMemMap"};
    for (int n = 0; n < 2; n++)
        printf("%d %d ", dlsym(RTLD_DEFAULT, names[n]) != NULL, dlsym(library, names[n]) != NULL);
    return 0;
}
"""


def test_what_the_driver_lacks_is_not_found_wherever_it_is_looked_for(tmp_path: Path) -> None:
    FakeCuda(tmp_path, without=("cuMemCreate",))
    asks = built(tmp_path, "asks", LACKS)
    assert run(asks, LD_LIBRARY_PATH=str(tmp_path)) == "0 0 1 1 "


def test_a_function_under_a_name_of_the_drivers_own_is_known(tmp_path: Path) -> None:
    FakeCuda(tmp_path)
    (tmp_path / "aliases").touch()
    finds = built(tmp_path, "finds", FINDS)
    world = {"LD_LIBRARY_PATH": str(tmp_path), WORLD: str(tmp_path)}
    assert run(finds, "cuMemAlloc_v2", "cuMemAlloc", **world).split()[1:] == ["cuMemAlloc_v2"] * 5
    bare = run(finds, "cuMemAlloc_v2", "cuMemAlloc", preload=None, **world).split()
    assert bare[1] == "cuMemAlloc_v2" != bare[2]


def test_a_static_program_takes_no_notice(tmp_path: Path) -> None:
    source = 'int puts(const char *text);\nint main(void) { return puts("static") < 0; }\n'
    assert run(built(tmp_path, "static", source, "-static")) == "static\n"


MUSL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
static void *thread(void *data) { return data; }
int main(int count, char **names) {
    pthread_t started;
    void *end = NULL;
    pthread_create(&started, NULL, thread, names);
    pthread_join(started, &end);
    printf("%d %d %d\n", dlsym(RTLD_DEFAULT, "puts") == (void *)puts, end == names, count);
    printf("%d\n", dlsym(RTLD_DEFAULT, "cuMemAlloc_v2") == NULL);
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("musl-gcc") is None, reason="no musl-gcc (Debian: musl-tools)")
@pytest.mark.parametrize("options", [(), ("-static",)])
def test_musl_programs_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    source = "int main(void) { return 0; }\n"
    assert run(built(tmp_path, "plain", source, *options, compiler="musl-gcc")) == ""
    if not options:
        asks = built(tmp_path, "asks", MUSL, compiler="musl-gcc")
        assert run(asks) == "1 1 1\n1\n"
