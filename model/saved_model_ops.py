"""Graph operations that a tower may consist of: they compute, look words up, and touch nothing outside.

A list of what is allowed, because one of what is not is never complete: besides `PyFunc` and `ReadFile`,
`PrintV2`, `DebugIdentityV3`, `ImmutableConst`, `DecodeProtoV2` and every data set read or write files too.
"""

__all__ = ["ALLOWED_OPS", "CHECKPOINT_OPS"]

CHECKPOINT_OPS = frozenset(("MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"))
"""Operations on the files of a checkpoint: every SavedModel saves and restores its variables with them."""

_FLOW = """
Assert Case Const ControlTrigger EnsureShape FakeParam Identity IdentityN If NoOp PartitionedCall Placeholder
PlaceholderV2 PlaceholderWithDefault PreventGradient Snapshot StatefulPartitionedCall StatelessCase
StatelessIf StatelessWhile StopGradient While
"""
_VARIABLES = """
AssignAddVariableOp AssignSubVariableOp AssignVariableOp DisableCopyOnRead ReadVariableOp ResourceGather
ResourceGatherNd VarHandleOp VarIsInitializedOp VariableShape
"""
_TABLES = """
AnonymousHashTable AnonymousMutableDenseHashTable AnonymousMutableHashTable HashTableV2
InitializeTableFromTextFileV2 InitializeTableV2 LookupTableExportV2 LookupTableFindV2 LookupTableImportV2
LookupTableInsertV2 LookupTableRemoveV2 LookupTableSizeV2 MutableDenseHashTableV2 MutableHashTableOfTensorsV2
MutableHashTableV2
"""
_ARRAYS = """
BatchToSpaceND Bitcast BroadcastArgs BroadcastGradientArgs BroadcastTo Bucketize Cast ConcatOffset ConcatV2
ConjugateTranspose DenseBincount DepthToSpace Diag DiagPart DynamicPartition DynamicStitch Empty ExpandDims
Fill Fingerprint GatherNd GatherV2 InvertPermutation LinSpace ListDiff LowerBound MatrixBandPart
MatrixDiagPartV3 MatrixDiagV3 MatrixSetDiagV3 MirrorPad NthElement OneHot OnesLike Pack Pad PadV2
ParallelDynamicStitch RaggedBincount RaggedCross RaggedFillEmptyRows RaggedGather RaggedRange
RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor RaggedTensorToVariant Range Rank Reshape
ReverseSequence ReverseV2 Roll ScatterNd Select SelectV2 SetSize Shape ShapeN Size Slice SpaceToBatchND
SpaceToDepth Split SplitV Squeeze StridedSlice StridedSliceGrad TensorListConcatV2 TensorListElementShape
TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack
TensorListReserve TensorListResize TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack
TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub TensorScatterUpdate EmptyTensorList Tile
TopKV2 Transpose Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex UpperBound Where
ZerosLike
"""
_MATH = """
Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2
Atanh BatchMatMulV2 BatchMatMulV3 BesselI0e BesselI1e Betainc Bincount BitwiseAnd BitwiseOr BitwiseXor Ceil
Cholesky ClipByValue Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp Digamma Div DivNoNan Einsum Equal Erf
Erfc Erfinv EuclideanNorm Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual HistogramFixedWidth Igamma
Igammac Inv Invert IsFinite IsInf IsNan LeftShift Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot
LogicalOr MatMul MatrixInverse MatrixSolve Max Maximum Mean Min Minimum Mod Mul MulNoNan Ndtri Neg NextAfter
NotEqual Polygamma PopulationCount Pow Prod RealDiv Reciprocal RightShift Rint Round Rsqrt SegmentMax
SegmentMean SegmentMin SegmentProd SegmentSum Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Square
SquaredDifference Sub Sum Tan Tanh TruncateDiv TruncateMod UnsortedSegmentMax UnsortedSegmentMin
UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlog1py Xlogy
"""
_RANDOM = """
RandomStandardNormal RandomUniform RandomUniformInt StatelessRandomGetAlg StatelessRandomGetKeyCounter
StatelessRandomGetKeyCounterAlg StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform
StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessTruncatedNormal
StatelessTruncatedNormalV2 TruncatedNormal
"""
_LAYERS = """
AvgPool BiasAdd BiasAddV1 Conv2D DepthwiseConv2dNative Elu FusedBatchNormV3 InTopKV2 L2Loss LRN LeakyRelu
LogSoftmax MaxPool MaxPoolV2 Relu Relu6 Selu Softmax SoftmaxCrossEntropyWithLogits
SparseSoftmaxCrossEntropyWithLogits
"""
_SPARSE = """
DenseToDenseSetOperation DenseToSparseSetOperation SparseBincount SparseConcat SparseCross SparseCrossHashed
SparseCrossV2 SparseFillEmptyRows SparseReduceMax SparseReduceSum SparseReorder SparseReshape
SparseSegmentMean SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNWithNumSegments
SparseSegmentSum SparseSegmentSumWithNumSegments SparseSlice SparseSoftmax SparseSplit SparseTensorDenseAdd
SparseTensorDenseMatMul SparseToDense
"""
_STRINGS = """
AsString DecodeBase64 DecodeRaw EncodeBase64 ReduceJoin RegexFullMatch RegexReplace StaticRegexFullMatch
StaticRegexReplace StringFormat StringJoin StringLength StringLower StringNGrams StringSplit StringSplitV2
StringStrip StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper
Substr UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript UnicodeTranscode
UnsortedSegmentJoin
"""

_KINDS = (_FLOW, _VARIABLES, _TABLES, _ARRAYS, _MATH, _RANDOM, _LAYERS, _SPARSE, _STRINGS)
ALLOWED_OPS = frozenset(op for kind in _KINDS for op in kind.split()) | CHECKPOINT_OPS
"""Every operation that a tower may consist of."""
