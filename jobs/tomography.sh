#!/bin/bash
# mpistream, mode tomography, on perlmutter.
# A scan at each tilt angle, and an index of them all.
#
# The scans are announced one after the other, one for each tilt. What they leave in the folder: a dataset for each,
# and an index with the angle of each, tilts.h5.
#
# Submit it with `sbatch FILE`, or let `mpistream job submit tomography` write and submit it. Then `squeue --me` shows
# whether it runs, its log is the file named at --output, and `scancel NUMBER` ends it.
#
# The session must be there when the job begins; whoever starts it says where its datasets go:
#     mpistream session start SESSION --config FILE --datasets FOLDER
#
# Fill in first: mNNNN (the account that pays), USER (your name there), SESSION (its name).

# Who asks, and for what. Lines of #SBATCH are read by Slurm and are no shell: no variables in them.
#SBATCH --job-name=mpistream-tomography-SESSION
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
#SBATCH --output=/pscratch/sd/u/USER/mpistream-tomography-SESSION-%j.log
#SBATCH --open-mode=append
# Ahead of the time limit the job is told (B: this script, not the ranks); the loss of a node does not end it.
#SBATCH --signal=B:USR1@300
#SBATCH --no-kill
#SBATCH --requeue

# ---- What this job does: edit here ------------------------------------------------------------------------------

session=SESSION
config=/pscratch/sd/u/USER/mpistream.toml
mpistream="$HOME/mpistream/.venv/bin/mpistream"

options=()
# The frames of each scan; {tilt} stands for its angle, {index} for its number; or camera.
frames='files:/pscratch/sd/u/USER/tilts/{tilt}'
options+=(--source "$frames")

# Angles in degrees: START:STOP:STEP with STOP, or a list with commas.
tilts=-60:60:2
options+=(--tilts "$tilts")

# The folder of the datasets and of their index.
output=/pscratch/sd/u/USER/SESSION/tomography
options+=(--output "$output")

# ---- Surroundings -----------------------------------------------------------------------------------------------

fail() {
    echo "mpistream-tomography-SESSION: error: $1" >&2
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
folder=$output
if ! mkdir -p "$folder" || [[ ! -w $folder ]]; then
    fail "cannot write into $folder" "mend the line output=..., or the permissions of the folder"
fi
stripe_medium "$folder"  # spreads large files over the file system's servers

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

exec "$mpistream" job run tomography --session "$session" \
    --config "$config" \
    --finish-seconds "$finish_seconds" --requeue \
    "${options[@]}" \
    -- "${ranks[@]}"
