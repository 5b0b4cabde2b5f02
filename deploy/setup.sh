# Sourced by the other scripts, from the root of the checkout: makes .venv with what is asked for, quickly when nothing has changed.
# `setup_venv run` installs streamq itself, `setup_venv dev` the tools of its developers as well. Afterwards .venv/bin is first in PATH.
# Nothing but Python 3.11 or newer is needed; STREAMQ_PYTHON chooses one.

find_python() {
    for candidate in ${STREAMQ_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "streamq needs Python 3.11 or newer, and none was found in PATH; set STREAMQ_PYTHON to one" >&2
    return 4
}

setup_venv() {
    # dev contains run: whoever asks for less than what is there gets it at once.
    python=$(find_python) || return $?
    wanted=$("$python" -c 'import sys; print(sys.version)' | cat - pyproject.toml | cksum)
    stamp=.venv/streamq-installed
    PATH="$PWD/.venv/bin:$PATH"
    export PATH
    unset PYTHONHOME
    if [ -x .venv/bin/streamq ] && [ -r "$stamp" ]; then
        read -r had kind <<STAMP
$(cat "$stamp")
STAMP
        if [ "$had" = "$(echo "$wanted" | tr ' ' '-')" ] && { [ "$kind" = dev ] || [ "$kind" = "$1" ]; }; then
            return 0
        fi
        # What was installed for developers stays so.
        [ "$kind" = dev ] && set -- dev
    fi
    rm -f "$stamp"
    # An environment of another Python, or one that was moved, cannot be repaired by installing into it.
    if ! .venv/bin/python -c "import sys, pip; sys.exit(sys.prefix != '$PWD/.venv' or sys.version != '''$("$python" -c 'import sys; print(sys.version)')''')" >/dev/null 2>&1; then
        echo "making .venv with $python" >&2
        rm -rf .venv
        if ! "$python" -m venv .venv >&2; then
            rm -rf .venv
            echo "making a virtual environment failed; Debian and Ubuntu keep that part of Python in the package python3-venv" >&2
            return 1
        fi
    fi
    if [ "$1" = dev ]; then what='.[dev]'; else what='.'; fi
    echo "installing streamq and what it needs into .venv" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$what" >&2 || return 1
    echo "$(echo "$wanted" | tr ' ' '-') $1" >"$stamp"
}
