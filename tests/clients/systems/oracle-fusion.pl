# A sync with Oracle Fusion as people write it: LWP, a token, no retries. BASE_URL RUN, the password in PASSWORD.
use strict;
use warnings;
use Digest::SHA qw(sha256);
use JSON::PP;
use LWP::UserAgent;
use MIME::Base64;

my ($base, $run) = @ARGV;
my $resources = 'resources/11.13.18.05';
my $agent = LWP::UserAgent->new(timeout => 120);
my (@failures, $calls);

sub call {
    my ($method, $path, $expected, $data, @fields) = @_;
    my $request = HTTP::Request->new($method, "$base/$path", \@fields);
    if (defined $data) {
        $request->header('Content-Type' => 'application/vnd.oracle.adf.resourceitem+json');
        $request->content(encode_json($data));
    }
    $calls++;
    my $answer = $agent->request($request);
    push @failures, "$method $path: " . $answer->code unless $answer->code == $expected;
    return $answer;
}

my $basic = 'Basic ' . encode_base64("script:$ENV{PASSWORD}", '');
my $told = call('GET', 'tokenrelay', 200, undef, Authorization => $basic);
my $token;
if ($told->is_success) {
    $token = decode_json($told->content)->{access_token};
    $agent->default_header(Authorization => "Bearer $token");
    for my $page (0 .. 3) {
        my $found = decode_json(call('GET', "$resources/itemsV2?limit=25&offset=" . 25 * $page, 200)->content);
        push @failures, 'a page is not whole' unless @{ $found->{items} || [] } == 25;
    }
    call('POST', "$resources/itemsV2", 201, { ItemNumber => "$run-$_" }) for 0 .. 11;
    my $refused = call('POST', "$resources/productChangeOrders", 401, {});
    push @failures, 'the business error is another one' unless $refused->content =~ /scope/;
    my $content = sha256($run) x 4096;
    my $given = { FileName => "$run.bin", FileContents => encode_base64($content, '') };
    call('POST', "$resources/attachments", 201, $given);
    my $back = call('GET', "$resources/attachments/$run.bin", 200)->content;
    push @failures, 'the file came back as another one' unless $back eq $content;
}
print encode_json({ calls => $calls, failures => \@failures, session => $token }), "\n";
exit(@failures ? 1 : 0);
