"""python3 opt_in.py USER PROGRAM ARGS…: run it as USER, opted in to KSM with all it will fork.

On kernels that keep PR_SET_MEMORY_MERGE over exec. It ends when the process that started it does.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_MEMORY_MERGE = 67  # 6.4+

user = pwd.getpwnam(sys.argv[1])
if user.pw_uid:
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
libc = ctypes.CDLL(None, use_errno=True)
# After the change of user, which takes the first one away again.
for option, value in ((PR_SET_PDEATHSIG, signal.SIGKILL), (PR_SET_MEMORY_MERGE, 1)):
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
os.execv(sys.argv[2], sys.argv[2:])
