#!/bin/bash
# mpistream, mode dark, on perlmutter.
# A dark scan becomes a dark reference and a pixel mask, which later scans use by name.
#
# The scan is taken with the beam blanked. What it leaves in the session's folder: the mean of every pixel and a mask of
# bad ones; later scans take them as --dark ref:NAME and --pixel-mask ref:NAME.
#
# Submit it with `sbatch FILE`, or let `mpistream job submit dark` write and submit it. Then `squeue --me` shows
# whether it runs, its log is the file named at --output, and `scancel NUMBER` ends it.
#
# The session must be there when the job begins; whoever starts it says where its datasets go:
#     mpistream session start SESSION --config FILE --datasets FOLDER
#
# Fill in first: mNNNN (the account that pays), USER (your name there), SESSION (its name).

# Who asks, and for what. Lines of #SBATCH are read by Slurm and are no shell: no variables in them.
#SBATCH --job-name=mpistream-dark-SESSION
#SBATCH --account=mNNNN
#SBATCH --qos=regular
#SBATCH --constraint=cpu
# How much: a rank group is what runs on one node.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=00:30:00
# Where it runs, and where its log goes: %j is the job's number, and a job that is requeued goes on in the same file.
#SBATCH --chdir=/pscratch/sd/u/USER
#SBATCH --output=/pscratch/sd/u/USER/mpistream-dark-SESSION-%j.log
#SBATCH --open-mode=append
# Ahead of the time limit the job is told (B: this script, not the ranks); the loss of a node does not end it.
#SBATCH --signal=B:USR1@300
#SBATCH --no-kill
#SBATCH --no-requeue

# ---- What this job does: edit here ------------------------------------------------------------------------------

session=SESSION
config=/pscratch/sd/u/USER/mpistream.toml
mpistream="$HOME/mpistream/.venv/bin/mpistream"
# The folder that the session was started with: mpistream session show says which.
datasets=/pscratch/sd/u/USER/SESSION

options=()
# The frames of the dark scan: files:DIR, raw:FILE.h5, sim:ROWSxCOLUMNS?electrons=0, camera.
frames=files:/pscratch/sd/u/USER/dark-sectors
options+=(--source "$frames")

# The name of the reference; one of the same name is replaced.
name=SESSION-dark
options+=(--name "$name")

# ---- Surroundings -----------------------------------------------------------------------------------------------

fail() {
    echo "mpistream-dark-SESSION: error: $1" >&2
    echo "  $2" >&2
    exit 1
}

module load python cray-hdf5-parallel ||
    fail "these modules cannot be loaded: python cray-hdf5-parallel" \
        "module avail shows what there is; submit from a login shell"
export HDF5_USE_FILE_LOCKING=FALSE
export OMP_NUM_THREADS=1

# ---- Is everything there? ---------------------------------------------------------------------------------------

set -u

command -v "$mpistream" >/dev/null ||
    fail "there is no command $mpistream" "install mpistream there, or mend the line mpistream=..."
[[ -r $config ]] ||
    fail "cannot read the configuration $config" "mend the line config=...; all nodes must see the file"
[[ -w $datasets ]] ||
    fail "cannot write into $datasets" "mend the line datasets=..., or the permissions of the folder"
mkdir -p "$datasets/references" || fail "cannot make $datasets/references" "mend the permissions of $datasets"
stripe_large "$datasets/references"  # spreads large files over the file system's servers

# ---- The MPI job: what srun starts on every node ----------------------------------------------------------------

# The ranks of a node are a rank group, which registers itself in etcd.
ranks=(
    srun --mpi=cray_shasta --ntasks-per-node=32 --cpus-per-task=8
    --cpu-bind=cores --kill-on-bad-exit=1
    # memory beside the network card, while there is some
    numactl --preferred=2
    "$mpistream" consume --config "$config" --interface hsn0
    # what is bound is the interface's address; who is outside connects to this name of a node
    --external-name '{host}.chn.perlmutter.nersc.gov'
)

# ---- The runner -------------------------------------------------------------------------------------------------

# From here on this process is the runner: it starts the ranks, starts them again without a node that has failed, and
# hears from Slurm when the time is nearly up. A scan in hand then has so many seconds to end:
finish_seconds=240

exec "$mpistream" job run dark --session "$session" \
    --config "$config" \
    --finish-seconds "$finish_seconds" --no-requeue \
    "${options[@]}" \
    -- "${ranks[@]}"
