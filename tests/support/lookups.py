"""Names whose look-up hangs, for the processes that a test starts, and for no others."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

#: Stands before the C library's function, and never answers for a name that ends in `.hangs`.
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int lookup(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static int ends_with(const char *name, const char *end) {
    size_t length = strlen(name), size = strlen(end);
    return length >= size && strcmp(name + length - size, end) == 0;
}

static void note(const char *name) {
    FILE *file = fopen(getenv("LOOKUPS"), "a");
    if (file != NULL) {
        fprintf(file, "%s\n", name);
        fclose(file);
    }
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (name != NULL && ends_with(name, ".hangs")) {
        note(name);
        for (;;)
            pause();
    }
    return ((lookup *)dlsym(RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
}
"""


class HangingLookups:
    """The library, made in a folder of the test's own.

    Attributes:
        environment: for the processes that are to have such names.
    """

    def __init__(self, folder: Path) -> None:
        self._noted = folder / "lookups"
        source, library = folder / "lookups.c", folder / "lookups.so"
        source.write_text(_SOURCE)
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == 0, done.stderr
        self.environment = {"LD_PRELOAD": str(library), "LOOKUPS": str(self._noted)}

    @staticmethod
    def objection() -> str | None:
        """Why there can be none here; None = there can."""
        return "gcc is missing: install Debian's packages gcc and libc6-dev" if shutil.which("gcc") is None else None

    def noted(self) -> list[str]:
        """The names whose look-ups hang by now, in order, each as often as it is looked up."""
        return self._noted.read_text().split() if self._noted.exists() else []
