"""`python -m service.jobs`: see `service.jobs.process`."""

from service.jobs.process import main

if __name__ == "__main__":
    main()
