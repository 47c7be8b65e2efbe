"""Other libraries' doors: each file knows one of them, and is imported when it is asked for."""
