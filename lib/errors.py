"""Errors that a user can fix end in one line, which names the file and the remedy."""
from contextlib import contextmanager
from pickle import UnpicklingError


class InputError(Exception):
    """Bad input. The message names the file, the row and the remedy."""

    def __init__(self, message):
        # From a loading process, DataLoader sends the whole traceback, which ends in the message.
        message = message.split("InputError: ")[-1]
        super().__init__(message.strip())


@contextmanager
def explain_errors(file, remedy):
    """Whatever goes wrong inside this block becomes one InputError that names `file`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{file} is missing: {remedy}") from None
    except IsADirectoryError:
        raise InputError(f"{file} is a folder: {remedy}") from None
    except UnpicklingError:  # torch's text suggests executing the file
        raise InputError(f"{file} is not a file of tensors and numbers: {remedy}") from None
    except KeyError as error:
        raise InputError(f"{file}: {error} is missing or unknown: {remedy}") from error
    except Exception as error:  # decoders and parsers raise many kinds of error
        raise InputError(f"{file}: {first_line(error)}: {remedy}") from error


def first_line(error):
    """The beginning of an error's text."""
    lines = (str(error).strip() or repr(error)).splitlines()
    text = lines[0]
    if text.endswith(":") and len(lines) > 1:  # torch: what does not fit
        text += " " + lines[1].strip()
    return text[:300].rstrip(":")
