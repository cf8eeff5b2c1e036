"""What runs in a guest, beside what it looks at: python -m in_guest PART …"""
