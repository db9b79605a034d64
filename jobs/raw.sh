#!/bin/bash
# mpistream, mode raw, on perlmutter.
# Sectors as they come into one parallel HDF5 file, uncounted; replay counts them later.
#
# Nothing is counted: every sector goes into one parallel HDF5 file as it comes. It is as large as the scan (a
# 1024 x 1024 scan is 696 GB). Mode replay counts it later.
#
# Submit it with `sbatch FILE`, or let `mpistream job submit raw` write and submit it. Then `squeue --me` shows
# whether it runs, its log is the file named at --output, and `scancel NUMBER` ends it.
#
# The session must be there when the job begins; whoever starts it says where its datasets go:
#     mpistream session start SESSION --config FILE --datasets FOLDER
#
# Fill in first: mNNNN (the account that pays), USER (your name there), SESSION (its name).

# Who asks, and for what. Lines of #SBATCH are read by Slurm and are no shell: no variables in them.
#SBATCH --job-name=mpistream-raw-SESSION
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
#SBATCH --output=/pscratch/sd/u/USER/mpistream-raw-SESSION-%j.log
#SBATCH --open-mode=append
# Ahead of the time limit the job is told (B: this script, not the ranks); the loss of a node does not end it.
#SBATCH --signal=B:USR1@300
#SBATCH --no-kill
#SBATCH --no-requeue

# ---- What this job does: edit here ------------------------------------------------------------------------------

session=SESSION
config=/pscratch/sd/u/USER/mpistream.toml
mpistream="$HOME/mpistream/.venv/bin/mpistream"

options=()
# The frames: files:DIR, sim:ROWSxCOLUMNS; camera: what it pushes next.
frames=files:/pscratch/sd/u/USER/sectors
options+=(--source "$frames")

# The recording. Its folder is made if it is not there.
output=/pscratch/sd/u/USER/SESSION/recording.h5
options+=(--output "$output")

# ---- Surroundings -----------------------------------------------------------------------------------------------

fail() {
    echo "mpistream-raw-SESSION: error: $1" >&2
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
folder=$(dirname "$output")
if ! mkdir -p "$folder" || [[ ! -w $folder ]]; then
    fail "cannot write into $folder" "mend the line output=..., or the permissions of the folder"
fi
stripe_large "$folder"  # spreads large files over the file system's servers

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

exec "$mpistream" job run raw --session "$session" \
    --config "$config" \
    --finish-seconds "$finish_seconds" --no-requeue \
    "${options[@]}" \
    -- "${ranks[@]}"
