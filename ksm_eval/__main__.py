"""python -m ksm_eval"""

from ksm_eval.cli import main

if __name__ == "__main__":
    main()
