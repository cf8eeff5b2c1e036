"""The kernels that the prediction is held against: one line each, and where they come from."""

from __future__ import annotations

import lzma
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD_KERNEL = ROOT / "scripts/fixtures/build-kernel"


class KernelError(Exception):
    """A kernel cannot be had."""


@dataclass(frozen=True)
class Kernel:
    name: str
    version: str
    """Of Debian's cloud-amd64 kernels: "7.2" is the newest of its packages, "6.19.6" that one.
    Of the small ones: as scripts/fixtures/build-kernel takes it."""
    small: bool = False
    memory: int = 256  # MiB
    nodes: bool = True  # CONFIG_NUMA
    smart_scan: bool = True  # 6.7+


KERNELS = [
    Kernel("5.10", "5.10.0", smart_scan=False),
    Kernel("6.1", "6.1.0", smart_scan=False),
    Kernel("6.1-small", "6.1", small=True, memory=128, nodes=False, smart_scan=False),
    Kernel("6.12", "6.12"),
    Kernel("6.12-small", "6.12", small=True, memory=128, nodes=False),
    Kernel("6.16", "6.16"),
    Kernel("6.17", "6.17"),
    Kernel("6.18", "6.18"),
    Kernel("6.19.6", "6.19.6"),  # splits a THP one process at a time, as 6.16 to 6.18 do
    Kernel("6.19", "6.19"),
    Kernel("7.0", "7.0"),
    Kernel("7.1", "7.1"),
    Kernel("7.2", "7.2"),
    Kernel("7.3", "7.3"),
]

SUITES = {
    "main": (*("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid"),),
    "security": ("bullseye-security", "bookworm-security", "trixie-security"),
}
MODULES = ("brd",)  # for swap, where a package has it


@dataclass(frozen=True)
class Image:
    """A kernel to boot."""

    kernel: Kernel
    release: str  # of the package; "" for a small kernel
    path: Path
    modules: dict[str, bytes]  # NAME.ko of the MODULES that were found


def find(names: list[str]) -> list[Kernel]:
    known = {kernel.name: kernel for kernel in KERNELS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise KernelError(f"no kernel {' '.join(unknown)}; there are: {' '.join(known)}")
    return [known[name] for name in names] if names else KERNELS


class Archive:
    """The system's own Debian archive, with more suites than the system uses.

    Everything apt keeps for it is in `directory`; the system's lists are not touched.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for part in ("lists/partial", "cache/archives/partial", "debs"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        self.options = [
            f"-oDir::State={directory}",
            f"-oDir::State::status={directory}/status",
            f"-oDir::Cache={directory}/cache",
            f"-oDir::Etc::sourcelist={directory}/sources.list",
            "-oDir::Etc::sourceparts=/dev/null",
            "-oAcquire::Languages=none",
        ]

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        try:
            done = subprocess.run(
                command, cwd=cwd, check=True, capture_output=True, text=True, timeout=600
            )
        except FileNotFoundError:
            raise KernelError(f"{command[0]} is missing: Debian is needed") from None
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or [""])[-1]
            raise KernelError(f"{command[0]} {command[-1]}: {last}") from None
        return done.stdout

    def update(self) -> None:
        """Read the package lists, once for a work directory."""
        sources = self.directory / "sources.list"
        if sources.exists() and any((self.directory / "lists").glob("*_Packages*")):
            return
        listed = self._run(
            *("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
        )
        lines = []
        for uri in sorted(set(listed.split())):
            kind = "security" if "security" in uri else "main"
            lines += [
                f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {suite} main"
                for suite in SUITES[kind]
            ]
        if not lines:
            raise KernelError("apt has no archive configured")
        sources.write_text("\n".join(lines) + "\n")
        self._run("apt-get", *self.options, "update")

    def _names(self) -> list[str]:
        """Packages of kernels, in the lists as update() read them."""
        saved = self.directory / "names"
        if not saved.exists():
            text = self._run("apt-cache", *self.options, "pkgnames", "linux-")
            saved.write_text(text)
        return saved.read_text().split()

    def _newest(self, version: str) -> str:
        """The release of the newest Debian cloud kernel of this version."""
        pattern = rf"linux-(?:image|binary)-({re.escape(version)}[.+-].*cloud-amd64)"
        found = {match[1] for name in self._names() if (match := re.fullmatch(pattern, name))}
        # Release candidates and meta packages ("7.3-cloud-amd64") have no patch level, kernels
        # of another suite's source ("6.1.0-0.deb11.52") are like those of their own.
        real = [r for r in found if re.match(r"\d+\.\d+\.\d+", r) and ".deb11." not in r]
        if not real:
            raise KernelError(f"the archive has no cloud kernel {version}")

        def key(release: str) -> list[int]:
            # Of equal versions the oldest suite's: it is what was read and measured.
            numbers = [int(n) for n in re.findall(r"\d+", release.partition("+")[0])]
            suite = re.search(r"\+deb(\d+)", release)
            return [*numbers, -int(suite[1]) if suite else 0]

        return max(real, key=key)

    def _unpacked(self, package: str) -> Path | None:
        """Root of the package's files; None if there is no such package."""
        root = self.directory / "debs" / package
        if root.exists():
            return root
        if package not in self._names():
            return None
        debs = self.directory / "debs"
        if not list(debs.glob(f"{package}_*.deb")):
            self._run("apt-get", *self.options, "download", package, cwd=debs)
        deb = max(debs.glob(f"{package}_*.deb"))
        partial = root.with_name(root.name + ".partial")
        self._run("dpkg-deb", "-x", str(deb), str(partial))
        partial.rename(root)
        deb.unlink()
        return root

    def image(self, kernel: Kernel) -> Image:
        release = self._newest(kernel.version)
        roots: list[Path] = []
        # From 6.19 on linux-image is empty: linux-binary has the kernel, linux-modules the rest.
        for kind in ("binary", "modules", "image"):
            if kind == "image" and roots:
                break
            root = self._unpacked(f"linux-{kind}-{release}")
            if root is not None:
                roots.append(root)
        vmlinuz = [
            path
            for root in roots
            for pattern in (
                "boot/vmlinuz-*",
                "usr/lib/modules/*/vmlinuz*",
                "lib/modules/*/vmlinuz*",
            )
            for path in root.glob(pattern)
        ]
        if not vmlinuz:
            raise KernelError(f"no vmlinuz in the packages of {release}")
        modules = {}
        for name in MODULES:
            for root in roots:
                for path in root.glob(f"**/{name}.ko*"):
                    data = path.read_bytes()
                    modules[f"{name}.ko"] = lzma.decompress(data) if path.suffix == ".xz" else data
        return Image(kernel, release, vmlinuz[0], modules)


def image(kernel: Kernel, work: Path) -> Image:
    """Build or fetch it. Raises KernelError if it cannot be had."""
    if not kernel.small:
        archive = Archive(work / "archive")
        archive.update()
        return archive.image(kernel)
    path = work / f"build-{kernel.version}/arch/x86/boot/bzImage"
    if not path.exists():
        try:
            subprocess.run([BUILD_KERNEL, kernel.version, work], check=True)
        except subprocess.CalledProcessError:
            raise KernelError(f"building the small kernel {kernel.version} failed") from None
    return Image(kernel, "", path, {})
