# ruff: noqa: E501
"""Small programs that show what a worker's script can see of its process: by what it prints and how it ends.

Each says all it finds; the test compares what an exec'd and a forked interpreter say. What differs from one
process to the next anyway (ids, times, addresses) a program leaves out.
"""

from __future__ import annotations

SCRIPTS = {
    "main_module": """
        import sys
        print(__name__, __file__, __spec__, __package__, __doc__, __builtins__.__name__)
        print(type(__loader__).__name__, getattr(__loader__, "path", None), __annotations__)
        print(sorted(globals()), sys.modules["__main__"].__dict__ is globals())
    """,
    "arguments": """
        import sys
        print(sys.argv, sys.orig_argv, sys.executable, sys.prefix, sys.path)
        print(open("/proc/self/cmdline", "rb").read(), open("/proc/self/comm").read())
    """,
    "flags": """
        import sys, warnings
        print(sys.flags, sys._xoptions, sys.warnoptions, sys.dont_write_bytecode, __debug__)
        print(sys.getrecursionlimit(), sys.getswitchinterval(), sys.getfilesystemencoding())
        print(sys.getdlopenflags(), sys.float_repr_style, hash("stable"))
        print([f for f in warnings.filters if f[2] is not None][:20])
    """,
    "frames": """
        import inspect, sys, traceback
        def depth(): return len(inspect.stack())
        print(depth(), inspect.stack()[-1].filename, sys._getframe().f_back)
        traceback.print_stack()
    """,
    "uncaught": """
        def inner(): raise ValueError("deep")
        def outer():
            try: inner()
            except ValueError as error: raise KeyError("two") from error
        outer()
    """,
    "syntax_error": """
        print("never"
    """,
    "syntax_error_of_import": """
        compile("a b", "made.py", "exec")
    """,
    "exception_in_excepthook": """
        import sys
        def hook(kind, error, trace): print("hook", kind, error, trace.tb_lineno, trace.tb_next); raise OSError(1)
        sys.excepthook = hook
        1 / 0
    """,
    "own_excepthook": """
        import sys
        def hook(kind, error, trace): print("hook", kind, error, trace.tb_lineno, trace.tb_next)
        print(sys.excepthook is sys.__excepthook__)
        sys.excepthook = hook
        1 / 0
    """,
    "exit_none": "import sys; sys.exit()",
    "exit_number": "import sys; sys.exit(7)",
    "exit_text": "import sys; sys.exit('a last word')",
    "exit_object": "import sys; sys.exit([1, 2])",
    "exit_true": "raise SystemExit(True)",
    "exit_large": "raise SystemExit(2**40 + 3)",
    "exit_builtin": "exit(4)",
    "os_exit": "import os, sys; sys.stdout.write('kept?'); os._exit(5)",
    "keyboard_interrupt": "raise KeyboardInterrupt",
    "recursion": """
        def down(n): return down(n + 1)
        try: down(0)
        except RecursionError as error: print(error)
        import sys
        def count(n):
            try: return count(n + 1)
            except RecursionError: return n
        print(count(0))
    """,
    "atexit": """
        import atexit, sys
        atexit.register(print, "first registered", __name__)
        @atexit.register
        def last(): print("last registered", "__file__" in globals(), sys.modules["__main__"].__name__)
        raise ValueError("and still")
    """,
    "atexit_raises": """
        import atexit
        atexit.register(lambda: 1 / 0)
        print("ends")
    """,
    "finalizers": """
        class Loud:
            def __del__(self): print("deleted", __name__)
        kept = Loud()
        cycle = [Loud()]; cycle.append(cycle)
    """,
    "pickle": """
        import pickle, sys
        class Mine:
            def __reduce__(self): return Mine, ()
        data = pickle.dumps([Mine(), Mine])
        print(data.count(b"__main__"), type(pickle.loads(data)[0]) is Mine, Mine.__module__, Mine.__qualname__)
    """,
    "mp_spawn": """
        import multiprocessing, os, sys
        def work(q): q.put((__name__, sys.argv, os.path.basename(sys.modules["__mp_main__"].__file__)))
        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            queue = context.SimpleQueue()
            process = context.Process(target=work, args=(queue,))
            process.start(); print(queue.get()); process.join(); print(process.exitcode)
            print(multiprocessing.current_process(), multiprocessing.parent_process())
    """,
    "mp_fork": """
        import multiprocessing
        def work(n): return n * n
        if __name__ == "__main__":
            with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(work, range(5)))
    """,
    "mp_forkserver": """
        import multiprocessing
        def work(n): return n * n, __name__
        if __name__ == "__main__":
            with multiprocessing.get_context("forkserver").Pool(1) as pool: print(pool.map(work, range(3)))
    """,
    "signals": """
        import signal
        for number in sorted(signal.valid_signals()):
            print(number, signal.getsignal(number))
        print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.sigpending(), signal.set_wakeup_fd(-1))
        for line in open("/proc/self/status"):
            if line.startswith(("SigBlk", "SigIgn", "SigCgt", "SigPnd", "Threads", "Umask", "NoNewPrivs")): print(line)
    """,
    "dies_by_sigterm": "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('never')",
    "dies_by_sigkill": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "dies_by_abort": "import os; os.abort()",
    "handles_sigterm": """
        import os, signal, sys
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(frame.f_lineno))
        os.kill(os.getpid(), signal.SIGTERM)
        while True: signal.pause()
    """,
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(9)",
    "broken_pipe": """
        import os
        r, w = os.pipe(); os.close(r)
        try: os.write(w, b"x")
        except BrokenPipeError as error: print(error)
    """,
    "threads": """
        import threading, sys
        print(len(threading.enumerate()), threading.main_thread() is threading.current_thread())
        print(threading.current_thread().native_id == threading.get_native_id() != 0, len(sys._current_frames()))
        done = threading.Event()
        thread = threading.Thread(target=lambda: (done.wait(), print("in thread")))
        thread.start(); done.set(); thread.join()
        print(threading.stack_size(), sys.getswitchinterval())
    """,
    "daemon_threads": """
        import threading, time
        threading.Thread(target=lambda: time.sleep(60), daemon=True).start()
        print("main ends")
    """,
    "thread_raises": """
        import threading
        thread = threading.Thread(target=lambda: 1 / 0, name="worker of the script"); thread.start(); thread.join()
    """,
    "thread_pool": """
        import concurrent.futures
        with concurrent.futures.ThreadPoolExecutor(3) as pool: print(sum(pool.map(lambda n: n * n, range(50))))
    """,
    "asyncio": """
        import asyncio
        async def main():
            process = await asyncio.create_subprocess_exec("sh", "-c", "echo from shell; exit 3")
            print(await process.wait(), await asyncio.to_thread(lambda: 5))
        asyncio.run(main())
    """,
    "streams": """
        import os, stat, sys
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            print(stream.name, stream.mode, stream.encoding, stream.errors, stream.newlines)
            print(stream.line_buffering, getattr(stream, "write_through", None), stream.isatty(), stream.seekable())
            print(type(stream), type(stream.buffer), type(getattr(stream.buffer, "raw", None)), stream.fileno())
        print(sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__, sys.stdin.read())
        print([stat.S_IFMT(os.fstat(fd).st_mode) for fd in range(3)])
    """,
    "interleaved": """
        import os, sys
        sys.stdout.write("one "); os.write(1, b"two "); print("three", flush=True)
        sys.stderr.write("half"); os.write(2, b" line\\n")
        sys.stdout.buffer.write(b"bytes\\n"); print("\\udce4 \\u00e4")
    """,
    "descriptors": """
        import fcntl, os
        for name in sorted(os.listdir("/proc/self/fd"), key=int):
            try: target = os.readlink(f"/proc/self/fd/{name}")
            except OSError: continue
            # Which file without a name it is differs from run to run.
            print(int(name) > 2 or name, target.split(":")[0].split("#")[0], os.get_inheritable(int(name)), fcntl.fcntl(int(name), fcntl.F_GETFL))
    """,
    "process": """
        import os, resource
        print(os.getsid(0) == os.getpgrp() == os.getpid(), os.getcwd(), os.getpriority(os.PRIO_PROCESS, 0))
        print(sorted(os.sched_getaffinity(0)), os.sched_getscheduler(0), os.getgroups(), os.getresuid())
        print([resource.getrlimit(n) for n in range(16)], open("/proc/self/oom_score_adj").read())
        print(open("/proc/self/cgroup").read(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime)
    """,
    "dies_with_parent": """
        import ctypes
        signum = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(signum), 0, 0, 0)
        adopts = ctypes.c_int()
        ctypes.CDLL(None).prctl(37, ctypes.byref(adopts), 0, 0, 0)
        print(signum.value, adopts.value)
    """,
    "environment": """
        import ctypes, os, subprocess
        print(sorted(item for item in os.environ.items() if item[0] not in ("_", "SHLVL")))
        getenv = ctypes.CDLL(None).getenv; getenv.restype = ctypes.c_char_p
        print(sorted(open("/proc/self/environ").read().split(chr(0))))
        print(getenv(b"OF_THE_WORKER"), getenv(b"OF_THE_ZYGOTE"), getenv(b"PYTHONPATH"), getenv(b"AGENTD_ZYGOTE"))
        print(sorted(line for line in subprocess.check_output(["env"], text=True).splitlines() if line[:2] != "_="))
    """,
    "subprocess": """
        import subprocess, sys
        print(subprocess.run(["sh", "-c", "echo out; echo err >&2; exit 9"]).returncode)
        print(subprocess.check_output([sys.executable, "-c", "import sys; print(sys.path, sys.flags)"], text=True))
        print(subprocess.run([sys.executable, "-c", "import sitecustomize"], stderr=-1).returncode)
    """,
    "fork": """
        import os, sys
        pid = os.fork()
        if not pid: print("child", __name__); sys.exit(6)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        try: os.waitpid(-1, 0)
        except ChildProcessError as error: print(error)
    """,
    "faulthandler": """
        import faulthandler, sys
        print(faulthandler.is_enabled())
        faulthandler.dump_traceback(file=sys.stderr)
        faulthandler.enable()
        sys.stdout.flush()
        import ctypes; ctypes.string_at(0)
    """,
    "imports": """
        import sys, importlib.util, beside
        print(beside.__file__, beside.NAME, importlib.util.find_spec("beside").origin, sys.path[0])
        print(sys.meta_path, sys.path_hooks, importlib.util.find_spec("sitecustomize"))
        import site; print(site.ENABLE_USER_SITE, site.getsitepackages(), "quit" in dir(__builtins__))
        import nothing_of_that_name
    """,
    "garbage": "import gc; print(gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.garbage, gc.get_debug())",
    "logging": """
        import logging
        logging.warning("before"); logging.basicConfig(level=10); logging.getLogger("x").debug("after")
    """,
    "warnings": """
        import warnings
        warnings.warn("once"); warnings.warn("deprecated", DeprecationWarning)
        open("/dev/null")
    """,
    "tracing": """
        import sys, threading
        print(sys.gettrace(), sys.getprofile(), sys.breakpointhook is sys.__breakpointhook__, sys.displayhook is sys.__displayhook__)
        def trace(frame, event, arg): print(event, frame.f_code.co_name, frame.f_lineno); return trace
        def traced(): return 1
        sys.settrace(trace); traced(); sys.settrace(None)
    """,
    "source": """
        # -*- coding: latin-1 -*-
        import inspect, sys
        def here(): return 1
        print(inspect.getsource(here), inspect.getsourcefile(here), len("\xe4"))
        class A: pass
        print(inspect.getfile(A))
    """,
    "future_annotations": """
        def f(a: undefined_name = 1): pass
    """,
}
"""By name; each is run as `python NAME.py one two`, with `beside.py` in its folder."""
