#!/bin/bash
# mpistream, mode filebased, on perlmutter.
# The conventional workflow: sector files are copied, then counted from files by an MPI job.
#
# For comparison, and when no link to the camera is up: neither etcd nor a running microscope is needed. The copy stays
# where it is, so that a job that is submitted again copies only what is missing; remove it when it is no more needed.
#
# Submit it with `sbatch FILE`, or let `mpistream job submit filebased` write and submit it. Then `squeue --me` shows
# whether it runs, its log is the file named at --output, and `scancel NUMBER` ends it.
#
# Fill in first: mNNNN (the account that pays), USER (your name there), SESSION (its name), CAMERA-HOST.

# Who asks, and for what. Lines of #SBATCH are read by Slurm and are no shell: no variables in them.
#SBATCH --job-name=mpistream-filebased-SESSION
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
#SBATCH --output=/pscratch/sd/u/USER/mpistream-filebased-SESSION-%j.log
#SBATCH --open-mode=append
# Ahead of the time limit the job is told (B: this script, not the ranks); the loss of a node does not end it.
#SBATCH --signal=B:USR1@300
#SBATCH --no-kill
#SBATCH --no-requeue

# ---- What this job does: edit here ------------------------------------------------------------------------------

session=SESSION
mpistream="$HOME/mpistream/.venv/bin/mpistream"

# The camera's disks: DIR, or HOST:DIR for those of another host; the sectors may lie on several.
frames=(CAMERA-HOST:/data/sectors)

# The dataset. Its folder is made if it is not there.
output=/pscratch/sd/u/USER/SESSION/scan.h5

# Where the sector files are copied to: all nodes must see it, and no other scan's files may lie there.
copy="$SCRATCH"/mpistream${output%.h5}-sectors

# ---- Surroundings -----------------------------------------------------------------------------------------------

fail() {
    echo "mpistream-filebased-SESSION: error: $1" >&2
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
command -v rsync >/dev/null || fail "there is no rsync on this node" "ask the site for it"
folder=$(dirname "$output")
if ! mkdir -p "$folder" || [[ ! -w $folder ]]; then
    fail "cannot write into $folder" "mend the line output=..., or the permissions of the folder"
fi
stripe_medium "$folder"  # spreads large files over the file system's servers

mkdir -p "$copy" || fail "cannot make the folder $copy" "mend the line copy=..."
stripe_large "$copy"  # spreads large files over the file system's servers

# ---- The copy ---------------------------------------------------------------------------------------------------

trap 'fail "the time limit is near, and the copy is not complete" "submit again: it goes on"' USR1

copying=()
for folder in "${frames[@]}"; do
    rsync --archive --partial --protect-args --include='data_scan*_module*.data' --exclude='*' "$folder/" "$copy/" &
    copying+=($!)
done
for process in "${copying[@]}"; do
    wait "$process" ||
        fail "the copy failed: what rsync says stands above" "submit again once the camera's disks are there"
done
trap - USR1
echo "mpistream-filebased-SESSION: copied to $copy; when it is no more needed: rm -r $copy"

# ---- The MPI job: what srun starts on every node ----------------------------------------------------------------

# The ranks share the files among them; there is no streaming.
ranks=(
    srun --mpi=cray_shasta --ntasks-per-node=32 --cpus-per-task=8
    --cpu-bind=cores --kill-on-bad-exit=1
    # memory beside the network card, while there is some
    numactl --preferred=2
    "$mpistream" count --source "files:$copy" --output "$output"
)

# ---- The runner -------------------------------------------------------------------------------------------------

# From here on this process is the runner: it starts the ranks once, says how they ended, and keeps the job's record.

exec "$mpistream" job run filebased --session "$session" \
    --no-requeue \
    -- "${ranks[@]}"
