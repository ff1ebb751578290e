"""Where a server's files are and which user it runs as. Never opens a parent folder for it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compose.instance import Instance, StackError, make_folder, remove_tree


@dataclass(frozen=True)
class Home:
    """A server's folder, 0700, and the user it belongs to (empty: the caller)."""

    folder: Path
    user: str

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_text(text)
        self.own(path)
        return path

    def own(self, path: Path) -> None:
        if self.user:
            account = pwd.getpwnam(self.user)
            os.chown(path, account.pw_uid, account.pw_gid)

    def credentials(self) -> dict[str, Any]:
        """Arguments for `subprocess` to run something as this user."""
        if not self.user:
            return {}
        account = pwd.getpwnam(self.user)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    @property
    def environment(self) -> dict[str, str]:
        path = os.environ.get("PATH", "/usr/bin:/bin")
        return {"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8", "TMPDIR": str(self.folder)}


def make_home(instance: Instance, server: str, users: tuple[str, ...], *, spaces: bool = True) -> Home:
    """A folder for a server: in the instance's own, or where its user can reach it, with a link left in the former.

    Parent folders are never opened for it.
    """
    user = _unprivileged(users) if os.geteuid() == 0 else ""
    inside = instance.folder / "servers" / server
    make_folder(inside.parent)
    if inside.is_symlink():
        inside.unlink()
    for folder in (inside, instance.outside / server):
        if not spaces and " " in str(folder):
            continue
        home = Home(folder, user)
        if folder != inside:
            _make_outside(instance.outside)
        folder.mkdir(mode=0o700, exist_ok=True)
        home.own(folder)
        if _is_reachable(home):
            if folder != inside:
                inside.symlink_to(folder)
            return home
        if any(folder.iterdir()):
            raise StackError(f"{folder} holds data, but user {user} can no longer reach it: `make down ARGS=--wipe`.")
        folder.rmdir()
    raise StackError(f"Found no folder for {server} that user {user or 'of this process'} can reach.")


def _make_outside(place: Path) -> None:
    for folder in (place.parent, place):
        folder.mkdir(mode=0o711, exist_ok=True)
        facts = folder.lstat()
        # In a temporary folder anyone could have been there first.
        if folder.is_symlink() or facts.st_uid != os.geteuid():
            raise StackError(f"{folder} belongs to somebody else.")
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)


def _unprivileged(users: tuple[str, ...]) -> str:
    for user in (*users, "nobody"):
        try:
            if pwd.getpwnam(user).pw_uid != 0:
                return user
        except KeyError:
            continue
    raise StackError(f"None of the users {', '.join(users)}, nobody exists to run a server as.")


def _is_reachable(home: Home) -> bool:
    command = ["/bin/sh", "-c", 'cd -- "$1" && test -w .', "sh", str(home.folder)]
    return subprocess.run(command, cwd="/", capture_output=True, check=False, **home.credentials()).returncode == 0


def remove_homes(instance: Instance) -> None:
    """Remove all server data of an instance, outside the clone as well."""
    remove_tree(instance.folder / "servers")
    remove_tree(instance.outside)
    try:
        instance.outside.parent.rmdir()
    except OSError:
        # Another instance of this clone still lives there, or none ever did.
        return


def reachable_copy(home: Home, program: Path, *, copies: list[Path]) -> Path:
    """The program, copied into the home if the server's user cannot run it where it is (a wheel in a closed clone)."""
    command = ["/bin/sh", "-c", 'test -x "$1"', "sh", str(program)]
    if subprocess.run(command, cwd="/", check=False, **home.credentials()).returncode == 0:
        return program
    if not copies:
        raise StackError(f"User {home.user} cannot run {program}: install it where every user can.")
    bundle = home.folder / "program"
    remove_tree(bundle)
    bundle.mkdir(mode=0o755)
    home.own(bundle)
    for source in copies:
        if source.is_dir():
            shutil.copytree(source, bundle / source.name, symlinks=True)
        else:
            shutil.copy2(source, bundle / source.name)
    return bundle / program.relative_to(copies[0].parent)
