# A sync with Windchill as people write it: LWP, a nonce, no retries. BASE_URL RUN, the password in PASSWORD.
use strict;
use warnings;
use Digest::SHA qw(sha256);
use HTTP::Request::Common qw(POST);
use JSON::PP;
use LWP::UserAgent;
use MIME::Base64;

my ($base, $run) = @ARGV;
my $agent = LWP::UserAgent->new(timeout => 120, cookie_jar => {});
$agent->default_header(Authorization => 'Basic ' . encode_base64("script:$ENV{PASSWORD}", ''));
my (@failures, $calls);

sub sent {
    my ($request, $expected) = @_;
    $calls++;
    my $answer = $agent->request($request);
    push @failures, $request->method . ' ' . $request->uri . ': ' . $answer->code unless $answer->code == $expected;
    return $answer;
}

sub call {
    my ($method, $path, $expected, $data) = @_;
    my $request = HTTP::Request->new($method, "$base/servlet/odata/$path");
    if (defined $data) {
        $request->header('Content-Type' => 'application/json');
        $request->content(encode_json($data));
    }
    return sent($request, $expected);
}

my $told = call('GET', 'PTC/GetCSRFToken()', 200);
my $nonce;
if ($told->is_success) {
    $nonce = decode_json($told->content)->{NonceValue};
    # With a colon the name stays as it is; else LWP makes CSRF-NONCE of it.
    $agent->default_header(':CSRF_NONCE' => $nonce);
    for my $page (0 .. 3) {
        my $found = decode_json(call('GET', 'ProdMgmt/Parts?$skip=' . 25 * $page, 200)->content);
        push @failures, 'a page is not whole' unless @{ $found->{value} || [] } == 25;
    }
    call('POST', 'ProdMgmt/Parts', 201, { Number => "$run-$_", Name => 'Bolt' }) for 0 .. 11;
    my $refused = call('POST', 'ProdMgmt/Parts', 403, { Number => 'forbidden' });
    push @failures, 'the business error is another one' unless $refused->content =~ /permission/;
    my $content = sha256($run) x 4096;
    my $document = "DocMgmt/Documents('OR:$run')";
    my $stage = decode_json(call('POST', "$document/PTC.DocMgmt.UploadStage1Action", 200, { NoOfFiles => 1 })->content);
    if ($stage->{value}) {
        my $form = [ 1 => [ undef, 'drawing.bin', Content => $content ] ];
        my $info = sent(POST($stage->{value}[0]{ReplicaUrl}, Content_Type => 'form-data', Content => $form), 200);
        my $coded = decode_json($info->content)->{contentInfos}[0]{encodedInfo};
        call('POST', "$document/PTC.DocMgmt.UploadStage3Action", 200, { ContentInfo => [ { EncodedInfo => $coded } ] });
        my $back = call('GET', "$document/PrimaryContent/\$value", 200)->content;
        push @failures, 'the file came back as another one' unless $back eq $content;
    }
}
print encode_json({ calls => $calls, failures => \@failures, session => $nonce }), "\n";
exit(@failures ? 1 : 0);
