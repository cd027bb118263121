"""The smallest program that says how much memory it had at most, in bytes; the launcher before it is not in it."""

with open("/proc/self/status") as status:
    print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
