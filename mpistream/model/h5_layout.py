"""Names and types of the dataset file, format version 1. See docs/file-format.md.

Flat data is never called ``frames``: stempy would open it as another format and give wrong sums without a word.
"""

FORMAT_NAME = "mpistream-electron-events"
FORMAT_VERSION = 1

SERIES_FORMAT_NAME = "mpistream-electron-series"
SERIES_FORMAT_VERSION = 1
TILTS_FORMAT_NAME = "mpistream-tilt-index"
TILTS_FORMAT_VERSION = 1

#: Attributes of the root.
FORMAT_ATTRIBUTE = "format"
FORMAT_VERSION_ATTRIBUTE = "format_version"
SCAN_SHAPE_ATTRIBUTE = "scan_shape"
FRAME_SHAPE_ATTRIBUTE = "frame_shape"
SCAN_UID_ATTRIBUTE = "scan_uid"
SCAN_NUMBER_ATTRIBUTE = "scan_number"

EVENTS = "electron_events"
INDICES = f"{EVENTS}/indices"
OFFSETS = f"{EVENTS}/offsets"
SCAN_POSITION = f"{EVENTS}/scan_position"
FRAME_NUMBER = f"{EVENTS}/frame_number"
MISSING_SECTORS = f"{EVENTS}/missing_sectors"
#: Only where centroids were asked for.
CENTROIDS = f"{EVENTS}/centroids"

#: name of an array that every dataset has -> dtype, little-endian
EVENT_DTYPES = {
    INDICES: "<u4",
    OFFSETS: "<u8",
    SCAN_POSITION: "<u4",
    FRAME_NUMBER: "<u8",
    MISSING_SECTORS: "u1",
}
CENTROIDS_DTYPE = "i1"

IMAGES = "images"
BRIGHT_FIELD = f"{IMAGES}/bright_field"
ANNULAR_DARK_FIELD = f"{IMAGES}/annular_dark_field"
ELECTRON_COUNT = f"{IMAGES}/electron_count"
DIFFRACTION_SUM = f"{IMAGES}/diffraction_sum"
IMAGE_DTYPE = "<u8"
CENTER_OF_MASS = f"{IMAGES}/center_of_mass"
CENTER_OF_MASS_DTYPE = "<f8"

#: Attributes of an image: radii and center in pixels of the frame, center as (row, column).
INNER_RADIUS_ATTRIBUTE = "inner_radius"
OUTER_RADIUS_ATTRIBUTE = "outer_radius"
CENTER_ATTRIBUTE = "center"

REFERENCES = "references"
DARK = f"{REFERENCES}/dark"
GAIN = f"{REFERENCES}/gain"
PIXEL_MASK = f"{REFERENCES}/pixel_mask"

COUNTING = "metadata/electron_counting"
SAMPLE_HISTOGRAM = f"{COUNTING}/sample_histogram"
FIRST_BIN_ATTRIBUTE = "first_bin"
COUNTERS = "metadata/counters"
PROVENANCE = "metadata/provenance"
PROVENANCE_SECONDS = f"{PROVENANCE}/seconds"
PROVENANCE_VERSIONS = f"{PROVENANCE}/versions"
PROVENANCE_RANKS = f"{PROVENANCE}/ranks"

#: Attributes are the scan's labels; present only where it has some.
LABELS = "metadata/labels"
#: Attribute of the provenance; present only where the scan belongs to one.
SESSION_ATTRIBUTE = "session"

DELIVERY = "metadata/delivery"
COMPLETE_ATTRIBUTE = "complete"
ENDS_ATTRIBUTE = "ends"
REJECTED = f"{DELIVERY}/rejected"
CHECKSUMS = f"{DELIVERY}/checksums"

#: One row per record that came and was left out because it was bad.
REJECTED_DTYPE = [("frame_number", "<u8"), ("sector", "u1")]

#: The arrays of which there are checksums, without their group.
CHECKSUM_NAMES = tuple(name.rpartition("/")[2] for name in (*EVENT_DTYPES, CENTROIDS))
#: One row per slab: which rows of the arrays it is, and the CRC-32 of its part of each array (0 without centroids).
#: That of the offsets takes in the one behind its last frame.
CHECKSUM_DTYPE = [
    ("first_frame", "<u8"),
    ("n_frames", "<u8"),
    ("first_event", "<u8"),
    ("n_events", "<u8"),
    *((name, "<u4") for name in CHECKSUM_NAMES),
]

#: One row per rank: its share of the events, and what it wrote them with: HDF5's driver, or posix (empty: rank 0 did).
RANK_DTYPE = [
    ("rank", "<u4"),
    ("host", "S64"),
    ("driver", "S8"),
    ("first_frame", "<u8"),
    ("n_frames", "<u8"),
    ("first_event", "<u8"),
    ("n_events", "<u8"),
]

#: What a series or a tilt index says of a scan, beside the name of its dataset.
SCAN_FIELDS = [
    ("scan_uid", "S36"),
    ("scan_number", "<i8"),
    ("announced_unix_seconds", "<f8"),
    ("background_threshold", "<f8"),
    ("x_ray_threshold", "<f8"),
    ("center", "<f8", (2,)),
    *(
        (name, "<i8")
        for name in (
            "frames",
            "electrons",
            "frames_incomplete",
            "sectors_missing",
            "sectors_duplicate",
            "sectors_rejected",
            "frames_lost",
            "raw_bytes",
        )
    ),
]
#: The groups of single scans.
SCANS = "scans"

# series of scans

#: Which scan of a series a frame is of, beside the other event arrays.
TIME_INDEX = f"{EVENTS}/time_index"
TIME_INDEX_DTYPE = "<u4"
#: One row per scan, in order of time: which rows of the event arrays are its own, and more about it.
SERIES = "series"
SERIES_FIELDS = [
    ("time_index", TIME_INDEX_DTYPE),
    ("first_frame", "<u8"),
    ("n_frames", "<u8"),
    ("first_event", "<u8"),
    ("n_events", "<u8"),
    ("complete", "u1"),
    *SCAN_FIELDS,
]
#: Images of which a series has a stack, one for each scan.
STACKED_IMAGES = (BRIGHT_FIELD, ANNULAR_DARK_FIELD, ELECTRON_COUNT, CENTER_OF_MASS)

# tilt indices

#: One row per tilt, in the order of acquisition.
TILTS = "tilts"
TILT_FIELDS = [
    ("tilt_degrees", "<f8"),
    ("state", "S16"),
    ("rows", "<u4"),
    ("columns", "<u4"),
    *SCAN_FIELDS,
]
#: uint32[tilts]: rows of TILTS, by angle.
BY_ANGLE = "by_angle"
BY_ANGLE_DTYPE = "<u4"
BINNING_ATTRIBUTE = "binning"
