# Sourced by the other scripts from the repository root: creates .venv on first use, activates it on every use.
# The argument is the list of extras of setup.py to install, e.g. "mpi" or "mpi,test".

# Open MPI does not start without HOME, which a scheduler or `env -i` may leave unset.
[ -n "${HOME+set}" ] || export HOME=~

set_up_environment() {
    local extras="$1" stamp=".venv/installed-$1"
    # Recreated if incomplete (the variables are the last step) or moved (it works only where it was created).
    if ! grep -qs OMPI_MCA_btl .venv/bin/activate || ! grep -qF "$(pwd -P)/.venv" .venv/bin/activate; then
        local python
        python="$(find_python)" || exit
        echo "setting up .venv with $("$python" --version)" >&2
        "$python" -m venv --clear .venv
        make_activate_set_mpi_up
    fi
    # Reinstalled only when what to install has changed.
    if ! what_to_install | cmp -s - "$stamp"; then
        echo "installing ppo and what it needs into .venv (a few minutes, once)" >&2
        # shellcheck disable=SC2046  # no index or two words
        .venv/bin/python -m pip install --quiet --disable-pip-version-check $(cpu_torch_index .venv/bin/python) \
            --constraint scripts/constraints.txt --editable ".[$extras]"
        what_to_install | tee "$stamp" > .venv/installed-mpi
    fi
    . .venv/bin/activate
}

# A newly installed compiler is a reason to reinstall: ppo has C extensions.
what_to_install() {
    cat setup.py scripts/constraints.txt ppo/*/_*.c ppo/*/*/_*.c
    command -v cc gcc clang || true
    ls "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" 2> /dev/null || true
}

find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11 python3.10)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        # Debian's python3 has venv but not ensurepip, so its environments would lack pip.
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        echo "PYTHON must be Python 3.10 or newer with its venv module, got $PYTHON; unset it to search for one" >&2
        return 2
    fi
    echo "ppo needs Python 3.10 or newer with its venv module: on Debian and Ubuntu, apt install python3-venv" >&2
    echo "(set PYTHON to name another one)" >&2
    return 1
}

# PyPI's torch for Linux brings gigabytes of CUDA libraries; for machines without a GPU, PyTorch's own index has a small
# one. The argument is the Python with which to test whether the index can be reached.
cpu_torch_index() {
    local index=https://download.pytorch.org/whl/cpu
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi > /dev/null \
        && "$1" -c "import urllib.request as r; r.urlopen('$index/torch/', timeout=5)" 2> /dev/null; then
        echo "--extra-index-url $index"
    fi
}

make_activate_set_mpi_up() {
    cat >> .venv/bin/activate <<'VARIABLES'

# Open MPI: let root start jobs (in containers), and let a job have more ranks than there are cores.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_MCA_rmaps_default_mapping_policy=slot:oversubscribe
# Ranks that wait give way to those that work.
export OMPI_MCA_mpi_yield_when_idle=1
# The transport over libfabric takes a second to find that it cannot be used.
export OMPI_MCA_btl="${OMPI_MCA_btl:-^ofi}"
VARIABLES
}
