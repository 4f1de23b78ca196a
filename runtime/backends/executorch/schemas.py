"""What the tables of a program hold: of program.fbs and runtime_schema.fbs (XNNPACK), 1.5.1.

Fields are found by their order, to which later versions only add.
"""

from __future__ import annotations

from retnet_edge.runtime.backends.executorch.flatbuffer import schema

PROGRAM = schema("""
ContainerMetadata encoded_inp_str:str encoded_out_str:str
Null
AllocationDetails memory_id:u32 memory_offset_low:u32 memory_offset_high:u32
ExtraTensorInfo mutable_data_segments_idx:u64 fully_qualified_name:str location:i8
    device_type:i8 device_index:i8
Tensor scalar_type:i8 storage_offset:i32 sizes:[i32] dim_order:[u8] requires_grad:bool
    data_buffer_idx:u32 allocation_info:AllocationDetails layout:i8 shape_dynamism:i8
    extra_tensor_info:ExtraTensorInfo
Int int_val:i64
Bool bool_val:bool
Double double_val:f64
String string_val:str
IntList items:[i64]
DoubleList items:[f64]
BoolList items:[bool]
TensorList items:[i32]
OptionalTensorList items:[i32]
EValue val:Null|Int|Bool|Double|Tensor|String|IntList|DoubleList|BoolList|TensorList
    |OptionalTensorList
Operator name:str overload:str
KernelCall op_index:i32 args:[i32]
DelegateCall delegate_index:i32 args:[i32]
MoveCall move_from:i32 move_to:i32
JumpFalseCall cond_value_index:i32 destination_instruction:i32
FreeCall value_index:i32
Instruction instr_args:KernelCall|DelegateCall|MoveCall|JumpFalseCall|FreeCall
Frame filename:str lineno:i32 name:str context:str
FrameList items:[Frame]
BackendDelegateDataReference location:i8 index:u32
CompileSpec key:str value:[u8]
BackendDelegate id:str processed:BackendDelegateDataReference compile_specs:[CompileSpec]
Chain inputs:[i32] outputs:[i32] instructions:[Instruction] stacktrace:[FrameList]
ExecutionPlan name:str container_meta_type:ContainerMetadata values:[EValue] inputs:[i32]
    outputs:[i32] chains:[Chain] operators:[Operator] delegates:[BackendDelegate]
    non_const_buffer_sizes:[i64] non_const_buffer_device:[NonConstBufferDevice]
NonConstBufferDevice buffer_idx:i32 device_type:i8 device_index:i8
Buffer storage:[u8]
BackendDelegateInlineData data:[u8]
DataSegment offset:u64 size:u64
SubsegmentOffsets segment_index:u32 offsets:[u64]
NamedData key:str segment_index:u32
Program version:u32 execution_plan:[ExecutionPlan] constant_buffer:[Buffer]
    backend_delegate_data:[BackendDelegateInlineData] segments:[DataSegment]
    constant_segment:SubsegmentOffsets mutable_data_segments:[SubsegmentOffsets]
    named_data:[NamedData]
""")

XNN_GRAPH = schema("""
Buffer storage:[u8]
PerChannelQuant scale:[f32] channel_dim:i32 scale_buffer_idx:u32 num_scales:u32
PerTokenDynamicQuant num_nonbatch_dims:i32
PerTensorQuant scale:f32 zero_point:i32
PerChannelGroupQuant scale:[f32] channel_dim:i32 group_size:i32 scale_bf16:[u16]
    scale_buffer_idx:u32 num_scales:u32
XNNTensorValue datatype:i16 num_dims:u32 dims:[u32] constant_buffer_idx:u32 external_id:u32
    flags:u32 id_out:u32 dq_datatype:i16
XNNQuantizedTensorValue tensor_value:XNNTensorValue
    quant_params:PerChannelQuant|PerTensorQuant|PerTokenDynamicQuant|PerChannelGroupQuant
OutputMinMax output_min:f32 output_max:f32
XNode xnode_union:Add=XNNNode2x1|FullyConnected=XNNFullyConnected|Softmax=XNNNode1x1
    |Sigmoid=XNNNode1x1|StaticTranspose=XNNStaticTranspose|Clamp=XNNNode1x1|Conv2d=XNNNodeConv
    |Div=XNNNode2x1|StaticResizeBilinear2D=XNNStaticResizeBilinear2D
    |StaticConstantPad=XNNStaticConstantPad|AvgPooling2d=XNNPooling2D|Minimum=XNNNode2x1
    |DepthwiseConv2d=XNNNodeConv|MaxPooling2d=XNNPooling2D|Multiply=XNNNode2x1
    |Subtract=XNNNode2x1|Floor=XNNNode1x1|Convert=XNNNode1x1|GlobalAvgPooling2d=XNNNode1x1
    |StaticReshape=XNNStaticReshape|ArgMaxPooling2d=XNNArgMaxPooling2d|SquareRoot=XNNNode1x1
    |Ceiling=XNNNode1x1|Hardswish=XNNNode1x1|LeakyReLU=XNNLeakyReLU|Maximum=XNNNode2x1
    |Negate=XNNNode1x1|Square=XNNNode1x1|ELU=XNNELU|Abs=XNNNode1x1|PReLU=XNNNode2x1
    |Concatenate2=XNNCat|Concatenate3=XNNCat|Concatenate4=XNNCat|StaticSlice=XNNStaticSlice
    |ScaledDotProductAttention=XNNScaledDotProductAttention|BatchMatrixMultiply=XNNNode2x1
    |Concatenate5=XNNCat|ConvTranspose2d=XNNNodeConv|ReciprocalSquareRoot=XNNNode1x1
    |Log=XNNNode1x1|Gelu=XNNNode1x1|Tanh=XNNNode1x1|Exp=XNNNode1x1|Sin=XNNNode1x1
    |Copy=XNNNode1x1|Cos=XNNNode1x1 debug_handle:u32 output_min_max:OutputMinMax
XValue xvalue_union:XNNTensorValue|XNNQuantizedTensorValue
XNNStaticTranspose num_dims:u32 perm:[u32] input_id:u32 output_id:u32 flags:u32
XNNStaticResizeBilinear2D new_height:u32 new_width:u32 input_id:u32 output_id:u32 flags:u32
XNNStaticConstantPad pre_paddings:[u32] post_paddings:[u32] padding_value:f32 input_id:u32
    output_id:u32 flags:u32
XNNNode2x1 input1_id:u32 input2_id:u32 output_id:u32 flags:u32
XNNNode1x1 input_id:u32 output_id:u32 flags:u32
XNNCat axis:u32 input1_id:u32 input2_id:u32 input3_id:u32 input4_id:u32 output_id:u32 flags:u32
    input5_id:u32
XNNELU alpha:f32 input_id:u32 output_id:u32 flags:u32
XNNFullyConnected input1_id:u32 filter_id:u32 bias_id:u32 output_id:u32 flags:u32
XNNNodeConv padding_top:u32 padding_right:u32 padding_bottom:u32 padding_left:u32
    kernel_height:u32 kernel_width:u32 subsampling_height:u32 subsampling_width:u32
    dilation_height:u32 dilation_width:u32 group_input_channels:u32 group_output_channels:u32
    groups:u32 adjustment_height:u32 adjustment_width:u32 input1_id:u32 filter_id:u32
    bias_id:u32 output_id:u32 flags:u32
XNNPooling2D padding_top:u32 padding_right:u32 padding_bottom:u32 padding_left:u32
    pooling_height:u32 pooling_width:u32 stride_height:u32 stride_width:u32 dilation_height:u32
    dilation_width:u32 input_id:u32 output_id:u32 flags:u32
XNNStaticReshape num_dims:u32 new_shape:[u32] input_id:u32 output_id:u32 flags:u32
XNNStaticSlice num_dims:u32 offsets:[u32] sizes:[u32] input_id:u32 output_id:u32 flags:u32
XNNScaledDotProductAttention query_id:u32 key_id:u32 value_id:u32 scale_id:u32 mask_id:u32
    output_id:u32 flags:u32
XNNArgMaxPooling2d padding_top:u32 padding_right:u32 padding_bottom:u32 padding_left:u32
    pooling_height:u32 pooling_width:u32 input_id:u32 output_value_id:u32 output_index_id:u32
    flags:u32
XNNLeakyReLU negative_slope:f32 input_id:u32 output_id:u32 flags:u32
ConstantDataOffset offset:u64 size:u64 named_key:str
XNNGraph version:str xnodes:[XNode] xvalues:[XValue] num_externs:u32 input_ids:[u32]
    output_ids:[u32] constant_buffer:[Buffer] mem_buffer_sizes:[u32]
    constant_data:[ConstantDataOffset]
""")
